"""A process that is killed or stopped at any step: others go on, and at most what it had in flight is paid twice."""

import signal
import threading

import pytest
from support.embedders import numbered
from support.processes import (
    check,
    embed,
    finish_embedding,
    start_embedding,
    wait_for_others,
)

from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.engine.runtime.cache_writer import CacheWriter

N_TEXTS = 20  # one request


def stop_at(embedder, step, texts):
    """Embed texts on another thread, and return when it has reached a step, where it stays."""
    reached, forever = threading.Event(), threading.Event()

    def stay():
        reached.set()
        forever.wait()

    exchange, write = LocalCoordinator.exchange, CacheWriter._write

    def exchange_and_stay(coordinator, begins, ends):
        grants = exchange(coordinator, begins, ends)
        if begins and step == "claimed":
            stay()
        return grants

    def write_and_stay(writer, jobs):
        if step == "answered":
            stay()
        write(writer, jobs)
        if step == "committed":
            stay()

    LocalCoordinator.exchange = exchange_and_stay
    CacheWriter._write = write_and_stay
    start_embedding(embedder, texts)
    assert reached.wait(20)


@pytest.mark.parametrize(("step", "most_repaid"), [("claimed", 0), ("answered", N_TEXTS), ("committed", 0)])
def test_the_texts_of_a_killed_process_are_embedded_by_those_that_wait(workers, server, step, most_repaid):
    texts = numbered(N_TEXTS)
    victim, other = workers(2)
    victim.run(stop_at, step, texts)
    in_flight = sum(len(request.texts) for request in server.requests)
    other.run(start_embedding, texts)
    if step != "committed":  # then the cache has the rows of the first request, which stays claimed
        other.run(wait_for_others)
    victim.kill()
    result = other.run(finish_embedding)
    check(result, texts)
    assert result.seconds < 8
    repaid = sum(server.billed_texts.values()) - N_TEXTS
    assert repaid <= min(in_flight, most_repaid)
    check(workers.one().run(embed, texts), texts)
    assert sum(server.billed_texts.values()) - N_TEXTS == repaid


def test_a_killed_process_loses_what_it_has_in_flight(workers, server):
    texts = numbered(N_TEXTS)
    server.hold()
    victim, *others = workers(3)
    victim.run(start_embedding, texts)
    server.wait_for_requests(1)
    for other in others:
        other.run(start_embedding, texts)
        other.run(wait_for_others)
    in_flight = {text for request in server.requests for text in request.texts}
    victim.kill()
    server.release()
    for other in others:
        check(other.run(finish_embedding), texts)
    assert all(n <= 1 + (text in in_flight) for text, n in server.billed_texts.items())


def test_a_stopped_process_loses_its_texts_after_ten_seconds_and_returns_them_all_the_same(workers, server):
    texts = numbered(20)
    server.hold()
    stopped, other = workers(2)
    stopped.run(start_embedding, texts)
    server.wait_for_requests(1)
    stopped.signal(signal.SIGSTOP)
    other.run(start_embedding, [*texts, "own"])
    server.wait_for_requests(2)
    server.release()
    result = other.run(finish_embedding)
    check(result, [*texts, "own"])
    assert 5 < result.seconds < 25  # ten, and a busy machine
    stopped.signal(signal.SIGCONT)
    check(stopped.run(finish_embedding), texts)
    assert all(n <= 2 for n in server.billed_texts.values())
    for worker, new in ((stopped, "a"), (other, "b")):  # both coordinate again
        check(worker.run(embed, [new]), [new])
    assert server.billed_texts["a"] == server.billed_texts["b"] == 1
    assert not stopped.warnings() + other.warnings()
