"""Several processes that need the same texts: each text is paid for once, and each wait has a limit."""

import asyncio

import pytest
from support.embedders import long_text, numbered, texts_sent
from support.openai_replies import INVALID_INPUT, Fault, error
from support.processes import (
    WorkerError,
    check,
    embed,
    embedded,
    finish_embedding,
    repaid,
    start_embedding,
    wait_for_others,
)
from support.waiting import wait_until_joined

from embedkit_core.cache import CacheFolder


def in_flight(workers, server, texts, **options):
    """Return a process whose only request is held by the server."""
    server.hold()
    worker = workers.one(**options)
    worker.run(start_embedding, texts)
    server.wait_for_requests(1)
    return worker


def test_processes_with_the_same_texts_pay_for_each_once(workers, server):
    texts = numbered(300)
    server.latency = 0.05
    jobs = [worker.start(embed, texts) for worker in workers(4)]
    results = [job.result() for job in jobs]
    for result in results:
        check(result, texts)
        assert (result.sent + result.coalesced + result.hits) == 300
    assert not repaid(server)
    assert sum(result.sent for result in results) == 300


def test_a_text_that_another_process_sends_counts_as_coalesced(workers, server):
    first = in_flight(workers, server, ["shared"])
    second = workers.one()
    second.run(start_embedding, ["shared", "own"])
    server.wait_for_requests(2)
    server.release()
    check(first.run(finish_embedding), ["shared"])
    result = second.run(finish_embedding)
    check(result, ["shared", "own"])
    assert (result.sent, result.coalesced) == (1, 1)
    assert sorted(texts_sent(server)) == ["own", "shared"]


async def _aembed_twice(embedder, texts):
    return await asyncio.gather(embedder.aembed(texts), embedder.aembed(texts))


def aembed(embedder, texts):
    """Embed the same texts twice on one event loop. Return the second result."""
    return embedded(lambda: asyncio.run(_aembed_twice(embedder, texts))[1])


def test_async_callers_wait_for_another_process(workers, server):
    first = in_flight(workers, server, ["shared"])
    second = workers.one()
    job = second.start(aembed, ["shared"])
    third = workers.one()
    third.run(start_embedding, ["shared"])
    third.run(wait_for_others)
    server.release()
    for result in (first.run(finish_embedding), job.result(), third.run(finish_embedding)):
        check(result, ["shared"])
    assert texts_sent(server) == ["shared"]


def test_a_query_waits_a_second_for_another_process_and_then_pays(workers, server):
    in_flight(workers, server, ["shared"])
    second = workers.one()
    second.run(start_embedding, ["shared"], input_type="query")
    server.wait_for_requests(2)
    server.release()
    result = second.run(finish_embedding)
    check(result, ["shared"])
    assert result.sent == 1
    assert result.seconds >= 0.9
    assert server.billed_texts == {"shared": 2}


def query_for_a_waiting_text(embedder, text):
    """Wait for another process with a document, then also as a query."""
    start_embedding(embedder, [text])
    wait_for_others(embedder)
    start_embedding(embedder, [text], input_type="query")
    wait_until_joined(embedder, 2)
    wait_for_others(embedder)


def test_a_text_that_a_query_joins_while_it_waits_is_sent_once(workers, server):
    victim = in_flight(workers, server, ["shared"])
    other = workers.one()
    other.run(query_for_a_waiting_text, "shared")
    victim.kill()
    server.release()
    for _ in range(2):
        check(other.run(finish_embedding), ["shared"])
    assert texts_sent(server) == ["shared", "shared"]


def test_a_deadline_ends_the_wait_for_another_process(workers, server):
    first = in_flight(workers, server, ["shared"])
    second = workers.one(deadline=0.3)
    with pytest.raises(WorkerError, match="deadline"):
        second.run(embed, ["shared"])
    server.release()
    check(first.run(finish_embedding), ["shared"])
    check(second.run(embed, ["shared"]), ["shared"])
    assert texts_sent(server) == ["shared"]


async def _cancel(embedder, texts):
    task = asyncio.create_task(embedder.aembed(texts))
    await asyncio.to_thread(wait_for_others, embedder, len(texts))
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


def cancel_while_waiting(embedder, texts):
    """Cancel a call whose texts all wait for another process. Return whether it was cancelled."""
    return asyncio.run(_cancel(embedder, texts))


def test_a_call_that_waits_for_another_process_can_be_cancelled(workers, server):
    first = in_flight(workers, server, ["shared"])
    second = workers.one()
    assert second.run(cancel_while_waiting, ["shared"])
    server.release()
    check(first.run(finish_embedding), ["shared"])
    check(second.run(embed, ["shared", "own"]), ["shared", "own"])
    assert sorted(texts_sent(server)) == ["own", "shared"]


@pytest.mark.parametrize("policy", ["mean", "truncate"])
def test_a_long_text_is_paid_for_once(workers, server, policy):
    server.max_tokens_per_text, server.latency = 50, 0.1
    texts = [long_text(120), "short", long_text(45, "x")]
    jobs = [worker.start(embed, texts, max_batch_texts=1) for worker in workers(2, on_long_text=policy)]
    first, second = (job.result() for job in jobs)
    assert (first.vectors == second.vectors).all()
    check(first._replace(vectors=first.vectors[1:]), texts[1:])
    assert not {text: n for text, n in repaid(server).items() if text != texts[0]}
    assert first.sent + second.sent == 3


def test_a_text_that_fails_in_one_process_is_sent_by_the_one_that_waits(workers, server):
    server.faults = [Fault(status=400, body=error(INVALID_INPUT), delay=1.0)]
    first, second = workers(2)
    first.run(start_embedding, ["shared"])
    server.wait_for_requests(1)
    second.run(start_embedding, ["shared"])
    second.run(wait_for_others)
    with pytest.raises(WorkerError, match="HTTP 400"):
        first.run(finish_embedding)
    check(second.run(finish_embedding), ["shared"])
    assert server.billed_texts == {"shared": 1}


def test_other_models_and_keys_do_not_wait(workers, server):
    server.api_key = None
    in_flight(workers, server, ["shared"])
    others = [workers.one(dimensions=8), workers.one(api_key="other", dimensions=None)]
    for n, other in enumerate(others, start=2):
        other.run(start_embedding, ["shared"])
        server.wait_for_requests(n)
    server.release()
    assert [other.run(finish_embedding).vectors.shape for other in others] == [(1, 8), (1, 1536)]


def test_processes_with_other_cache_folders_do_not_wait(workers, server, tmp_path):
    in_flight(workers, server, ["shared"])
    other = workers.one(cache=tmp_path / "other")
    other.run(start_embedding, ["shared"])
    server.wait_for_requests(2)
    server.release()
    check(other.run(finish_embedding), ["shared"])
    assert server.billed_texts == {"shared": 2}


def test_processes_continue_after_the_cache_was_cleared(workers, server):
    texts = numbered(20)
    first, second = workers(2)
    first.run(embed, texts)
    server.hold()
    first.run(start_embedding, ["shared"])
    server.wait_for_requests(2)
    second.run(start_embedding, ["shared"])
    second.run(wait_for_others)
    assert CacheFolder(workers.cache).clear() == 20
    server.release()
    for worker in (first, second):
        check(worker.run(finish_embedding), ["shared"])
    assert not repaid(server)
    check(second.run(embed, texts), texts)
    assert workers.coordination.exists()


def close(embedder, asynchronously):
    if asynchronously:
        asyncio.run(embedder.aclose())
    else:
        embedder.close()


@pytest.mark.parametrize("asynchronously", [False, True])
def test_a_closed_embedder_coordinates_again(workers, server, asynchronously):
    first, second = workers(2)
    first.run(embed, ["before"])
    first.run(close, asynchronously)
    server.hold()
    second.run(start_embedding, ["shared"])
    server.wait_for_requests(2)
    first.run(start_embedding, ["shared"])
    first.run(wait_for_others)
    server.release()
    for worker in (first, second):
        check(worker.run(finish_embedding), ["shared"])
    assert not repaid(server)


def test_an_embedder_is_closed_while_its_texts_are_in_flight(workers, server):
    first = in_flight(workers, server, ["shared"])
    second = workers.one()
    second.run(start_embedding, ["shared"])
    second.run(wait_for_others)
    first.run(close, asynchronously=False)
    second.run(close, asynchronously=False)
    server.release()
    for worker in (first, second):
        check(worker.run(finish_embedding), ["shared"])
    assert not repaid(server)
