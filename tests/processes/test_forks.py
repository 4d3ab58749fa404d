"""Processes that are forked or spawned from one that uses an embedder, also while requests are in flight."""

import ctypes
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest
from support.embedders import numbered
from support.processes import check, embed, embed_in_children, finish_embedding, in_fork, repaid, start_embedding

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")


def test_children_of_a_process_that_has_used_the_embedder_coordinate(workers, server):
    parent = workers.one()
    parent.run(embed, ["before"])
    server.latency = 0.1
    texts = numbered(60)
    for result in parent.run(embed_in_children, texts, 2):
        check(result, texts)
    assert not repaid(server)


def embed_in_pool(embedder, texts):
    """Embed the same texts in both processes of a pool of the standard library. Return the results."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        jobs = [pool.apply_async(embed, (embedder, texts)) for _ in range(2)]
        results = [job.get(30) for job in jobs]
        pool.close()
        pool.join()
    return results


def test_a_pool_of_forked_processes_coordinates(workers, server):
    parent = workers.one(pickle_api_key=True)
    parent.run(embed, ["before"])
    server.latency = 0.1
    for result in parent.run(embed_in_pool, numbered(30)):
        check(result, numbered(30))
    assert not repaid(server)


def fork_in_flight(embedder, texts):
    """Embed texts in a forked child."""
    return in_fork(embed, embedder, texts)()


def test_a_child_waits_for_what_its_parent_has_in_flight(workers, server):
    server.hold()
    parent = workers.one()
    parent.run(start_embedding, ["shared"])
    server.wait_for_requests(1)
    job = parent.start(fork_in_flight, ["shared", "own"])
    server.wait_for_requests(2)
    server.release()
    check(job.result(), ["shared", "own"])
    check(parent.run(finish_embedding), ["shared"])
    assert not repaid(server)


def save(embedder, texts, path):
    """Embed texts and save their vectors."""
    np.save(path.with_suffix(".part.npy"), embed(embedder, texts).vectors)
    path.with_suffix(".part.npy").rename(path)


def leave_child(embedder, texts, path):
    """Leave a forked child behind that embeds texts and saves their vectors."""
    in_fork(save, embedder, texts, path)


def test_a_child_does_not_keep_the_claims_of_a_parent_that_died(workers, server, tmp_path):
    server.hold()
    parent, other = workers(2)
    parent.run(start_embedding, ["shared"])
    server.wait_for_requests(1)
    parent.run(leave_child, ["own"], tmp_path / "rows.npy")
    server.wait_for_requests(2)
    parent.kill()
    other.run(start_embedding, ["shared"])
    server.wait_for_requests(3)
    server.release()
    result = other.run(finish_embedding)
    check(result, ["shared"])
    assert result.seconds < 8
    assert server.billed_texts["shared"] <= 2


def fork_often(embedder, texts):
    """Embed texts while this thread forks children that embed parts of them. Return all results."""
    start_embedding(embedder, texts)
    children = [in_fork(embed, embedder, texts[10 * n : 10 * n + 30]) for n in range(4)]
    return [finish_embedding(embedder), *(child() for child in children)]


def test_forks_during_requests_disturb_neither_process(workers, server):
    server.latency = 0.02
    texts = numbered(100)
    whole, *parts = workers.one().run(fork_often, texts)
    check(whole, texts)
    for n, part in enumerate(parts):
        check(part, texts[10 * n : 10 * n + 30])
    assert not repaid(server)


CLONE_NEWPID = 0x20000000


def start_in_container(embedder, texts):
    """Embed texts in a child with a PID namespace of its own, as in a container, if that is allowed. Return its PID."""
    ctypes.CDLL(None).unshare(CLONE_NEWPID)
    containers.append(in_fork(embed_as, embedder, texts))
    return containers[0].pid


def embed_as(embedder, texts):
    """Embed texts. Return the PID and the result."""
    return os.getpid(), embed(embedder, texts)


def finish_container(_embedder):
    """Return the PID that the child has seen, and its result."""
    return containers[0]()


containers = []


@pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX processes")
def test_processes_in_two_containers_on_one_volume_coordinate(workers, server):
    server.hold()
    first, second, third = workers(3)
    pid = first.run(start_in_container, ["a"])
    server.wait_for_requests(1)
    second.run(start_in_container, ["b"])
    server.wait_for_requests(2)
    third.run(start_embedding, ["a", "b", "own"])
    server.wait_for_requests(3)
    os.kill(pid, signal.SIGKILL)
    server.release()
    seen, result = second.run(finish_container)
    assert seen == 1 or os.geteuid() != 0
    check(result, ["b"])
    check(third.run(finish_embedding), ["a", "b", "own"])
    assert repaid(server).keys() <= {"a"}
