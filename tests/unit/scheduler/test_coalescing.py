"""Coalesced requests and shared limits of concurrent callers."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.embedders import fake_embedder, openai_embedder
from support.openai_server import OpenAIServer, vector_of
from support.waiting import wait_until_joined

from embedkit_core import BadReplyError, Embedder, RateLimitError
from embedkit_core.adapters.base import embed_lists
from embedkit_core.calls.waiting import wait
from embedkit_core.testing import FakeServer


def test_duplicates_are_sent_once_and_returned_as_separate_rows():
    with OpenAIServer() as server:
        result = openai_embedder(server).embed(["a", "b", "a", "a"])
        assert server.billed_texts == {"a": 1, "b": 1}
        assert all(np.array_equal(row, vector_of(t)) for row, t in zip(result.vectors, "abaa", strict=True))
        result.vectors[0] = 0
        assert np.array_equal(result.vectors[2], vector_of("a"))
        assert (result.usage.duplicates, result.usage.sent) == (2, 2)


def test_200_calls_for_one_new_text_from_two_loops_and_threads_make_one_request():
    with OpenAIServer() as server:
        embedder = openai_embedder(server)
        embedder.embed_query("warm up")
        server.hold()

        async def many() -> list[np.ndarray]:
            return await asyncio.gather(*(embedder.aembed_query("the same") for _ in range(60)))

        with ThreadPoolExecutor(82) as pool:
            loops = [pool.submit(asyncio.run, many()) for _ in range(2)]
            threads = [pool.submit(embedder.embed_query, "the same") for _ in range(80)]
            server.wait_for_requests(2)
            wait_until_joined(embedder, 200)
            server.release()
            rows = [row for loop in loops for row in loop.result()] + [t.result() for t in threads]
        assert len(rows) == 200
        assert all(np.array_equal(row, vector_of("the same")) for row in rows)
        assert server.billed_texts["the same"] == 1
        assert len(server.requests) == 2
        usage = embedder.usage
        assert (usage.sent, usage.coalesced, usage.requests) == (2, 199, 2)


@pytest.mark.parametrize("lists", [False, True])
def test_a_coalesced_caller_gets_no_width_that_its_own_settings_refuse(lists):
    with OpenAIServer() as server:
        settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False}
        any_width, eight = Embedder("m", **settings), Embedder("m", model_info={"dimensions": 8}, **settings)
        server.hold()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(any_width.embed, ["a"])
            server.wait_for_requests(1)
            joining = pool.submit(embed_lists, eight, ["a"]) if lists else pool.submit(eight.embed, ["a"])
            wait_until_joined(any_width, 2)
            server.release()
            assert first.result().vectors.shape == (1, 1536)
            with pytest.raises(BadReplyError, match="1536 dimensions instead of 8"):
                joining.result()
        assert len(server.requests) == 1
        assert eight.dimensions == 8


def test_200_distinct_queries_at_once_make_few_requests():
    with OpenAIServer(latency=0.05) as server:
        embedder = openai_embedder(server)

        async def many() -> list[np.ndarray]:
            return await asyncio.gather(*(embedder.aembed_query(f"query {i}") for i in range(200)))

        rows = asyncio.run(many())
        assert all(np.array_equal(row, vector_of(f"query {i}")) for i, row in enumerate(rows))
        assert len(server.requests) <= 25


def test_a_lone_query_on_an_idle_engine_is_sent_before_any_timer_could_run():
    """The submission by the caller alone triggers the request."""
    with OpenAIServer() as server:
        embedder = openai_embedder(server)
        embedder.embed_query("one")
        account = next(iter(embedder._accounts))
        assert account._timer is None
        embedder.embed_query("two")
        assert len(server.requests) == 2


def test_a_query_is_in_the_next_request_during_a_bulk_ingest():
    """The query is in the next request, for any number of waiting documents."""
    with OpenAIServer() as server:
        embedder = openai_embedder(server, max_concurrency=2)
        embedder.embed_query("warm up")
        server.hold()
        texts = [f"document {i}" for i in range(20_000)]
        with ThreadPoolExecutor(2) as pool:
            ingest = pool.submit(embedder.embed, texts)
            server.wait_for_requests(3)
            query = pool.submit(embedder.embed_query, "urgent")
            wait_until_joined(embedder, 20_001)
            server.release(1)
            server.wait_for_requests(4)
            assert server.requests[3].texts == ("urgent",)
            server.release()
            assert np.array_equal(query.result(), vector_of("urgent"))
            assert np.array_equal(ingest.result().vectors[19_999], vector_of("document 19999"))


def test_documents_get_a_slot_while_queries_keep_arriving():
    server = FakeServer()
    embedder = fake_embedder(server, max_concurrency=1)
    embedder.embed_query("warm up")
    embedder.embed(["warm up"])
    server.hold()
    stop = threading.Event()

    def ask(n: int) -> None:
        for i in range(200):
            if stop.is_set():
                return
            embedder.embed_query(f"query {n} {i}")

    with ThreadPoolExecutor(17) as pool:
        asking = [pool.submit(ask, n) for n in range(16)]
        bulk = pool.submit(embedder.embed, ["a document"])
        server.release()
        bulk.result(30)
        stop.set()
        for task in asking:
            task.result(30)
    roles = [seen.body["role"] for seen in server.received[2:]]
    first = roles.index("document")
    waiting_since = next(i for i, seen in enumerate(server.received[2:]) if seen.body["role"] == "query")
    assert first - waiting_since <= 16 + 8


def test_max_concurrency_holds_for_all_callers_of_an_account():
    """Four calls at once, sync and async, with two embedders, have at most five requests in flight."""
    with OpenAIServer(latency=0.02) as server:
        strict = openai_embedder(server, max_concurrency=5, max_batch_texts=8)
        other = openai_embedder(server, max_concurrency=5, max_batch_texts=8)
        texts = [[f"text {n} {i}" for i in range(160)] for n in range(4)]

        async def both() -> list[np.ndarray]:
            return await asyncio.gather(strict.aembed_documents(texts[0]), other.aembed_documents(texts[1]))

        with ThreadPoolExecutor(3) as pool:
            tasks = [pool.submit(asyncio.run, both())]
            tasks += [pool.submit(e.embed_documents, t) for e, t in ((strict, texts[2]), (other, texts[3]))]
            for task in tasks:
                task.result()
        assert server.peak_in_flight == 5
        assert len(server.billed_texts) == 640


def test_an_idle_embedder_with_a_lower_max_concurrency_limits_no_other():
    with OpenAIServer(latency=0.1) as server:
        idle = openai_embedder(server, max_concurrency=1)
        idle.embed_query("warm up")
        busy = openai_embedder(server, max_concurrency=6, max_batch_texts=8)
        busy.embed([f"text {i}" for i in range(200)])
        assert server.peak_in_flight == 6


def test_each_waiter_applies_its_own_retries_and_gets_its_own_exception():
    server = FakeServer()
    patient = fake_embedder(server, max_retries=2)
    hasty = fake_embedder(server, max_retries=0)
    patient.embed(["warm up"])
    server.hold()
    server.faults.append(RateLimitError("slow down", retry_after=0.01))
    with ThreadPoolExecutor(3) as pool:
        waits = pool.submit(patient.embed, ["shared"])
        server.wait_for_requests(2)
        gives_up = [pool.submit(hasty.embed, ["shared"]) for _ in range(2)]
        wait_until_joined(patient, 3)
        server.release()
        errors = [task.exception() for task in gives_up]
        assert waits.result().usage.retries == 1
    assert all(isinstance(error, RateLimitError) for error in errors)
    assert errors[0] is not errors[1]


def test_a_text_finished_during_another_lookup_is_not_paid_again(tmp_path):
    """The lookup misses, another caller finishes the text, and then the miss is submitted."""
    server = FakeServer()
    first = fake_embedder(server, cache=tmp_path)
    second = fake_embedder(server, cache=tmp_path)
    call = second._call(["one text"], "document")
    call.prepare()
    assert call.needs_engine
    first.embed(["one text"])
    wait(call)
    result = call.finish()
    assert len(server.received) == 1
    assert np.array_equal(result.vectors[0], server.vector("one text", server.received[0].body))
    assert (result.usage.coalesced, result.usage.sent) == (1, 0)
