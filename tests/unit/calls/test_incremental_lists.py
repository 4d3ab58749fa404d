"""Lists that are converted while replies are awaited, queries from memory, and lookups without an engine."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.caches import DictCache
from support.embedders import fake_embedder
from support.openai_server import OpenAIServer
from support.rows import check_rows
from support.scripts import finish, interrupt, start

from embedkit_core import Embedder, InputError, PartialFailureError, ProviderError
from embedkit_core.adapters.base import aembed_lists, embed_lists
from embedkit_core.calls import waiting
from embedkit_core.calls.rows import ListBuffer
from embedkit_core.common.float_lists import ROWS_PER_SLICE
from embedkit_core.testing import FakeServer


@pytest.fixture(autouse=True)
def _restored_collector():
    found = gc.get_threshold()
    yield
    assert gc.get_threshold() == found
    assert gc.isenabled()


def expected_lists(server, texts):
    return [server.vector(text, server.received[0].body).tolist() for text in texts]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(1, 50), st.booleans())
def test_lists_equal_the_matrix_for_duplicates_hits_and_misses(numbers, cached, with_loop):
    server = FakeServer()
    store = DictCache()
    fake_embedder(server, cache=store).embed([f"text {n}" for n in range(cached)])
    texts = [f"text {n}" for n in numbers]
    embedder = fake_embedder(server, cache=store, max_batch_texts=7)
    result = asyncio.run(aembed_lists(embedder, texts)) if with_loop else embed_lists(embedder, texts)
    rows, usage = result.rows, result.usage
    assert rows == expected_lists(server, texts)
    assert all(type(number) is float for number in rows[0])
    assert len({id(row) for row in rows}) == len(rows)
    new = {n for n in numbers if n >= cached}
    assert (usage.texts, usage.sent, usage.cache_hits) == (len(texts), len(new), len(set(numbers) - new))
    assert embedder.usage == usage


def test_lists_are_converted_while_other_replies_are_awaited():
    server = FakeServer()
    embedder = fake_embedder(server, max_concurrency=1, max_batch_texts=10)
    embedder.embed(["warm up"])
    texts = [f"text {i}" for i in range(30)]
    call = embedder._call(texts, "document", lists=True)
    call.prepare()
    awake = threading.Event()
    steps = waiting.steps(call, awake.set)
    server.hold()
    server.fault_for = lambda asked: server.hold()  # one reply passes only
    assert next(steps) is False  # nothing to convert yet
    server.wait_for_requests(2)
    server.release()
    assert awake.wait(20)
    assert next(steps) is True  # a slice was converted
    assert not call.ticket.closed
    server.fault_for = None
    server.release()
    for made in steps:
        assert made or awake.wait(20)
        awake.clear()
    call.leave()
    assert call.finish_lists() == expected_lists(server, texts)


def test_rows_are_converted_slice_by_slice_into_their_positions():
    rows = ListBuffer(200, np.arange(200)[::-1])
    matrix = np.arange(600, dtype=np.float32).reshape(200, 3)
    landed = []
    rows.on_rows = lambda: landed.append(None)
    rows.put_reply(range(150), matrix[:150])
    rows.put_reply(range(150, 200), matrix[150:])
    assert len(landed) == 2
    assert len(list(rows.slices())) == -(-150 // ROWS_PER_SLICE) + 1
    assert rows.put_count == 200
    assert rows.assemble(None, [], 3) == matrix[::-1].tolist()


@pytest.mark.parametrize("with_loop", [False, True])
def test_failures_of_lists_raise_the_same_error_as_a_matrix(with_loop):
    server = FakeServer()
    server.rejected_texts.add("bad")
    texts = ["bad", "good", "bad", "fine"]
    ask = (lambda *args: asyncio.run(aembed_lists(*args))) if with_loop else embed_lists
    with pytest.raises(PartialFailureError) as found:
        ask(fake_embedder(server), texts)
    result = found.value.result
    assert set(result.failed) == {0, 2}
    assert np.isnan(result.vectors[[0, 2]]).all()
    assert result.vectors[[1, 3]].tolist() == expected_lists(server, ["good", "fine"])
    assert (result.usage.texts, result.usage.failed, result.usage.duplicates) == (4, 1, 1)


def test_if_all_texts_fail_the_error_is_that_of_the_provider():
    server = FakeServer()
    server.rejected_texts.add("bad")
    with pytest.raises(ProviderError, match=r".") as found:
        embed_lists(fake_embedder(server), ["bad"])
    assert not isinstance(found.value, PartialFailureError)


def test_an_empty_input_returns_an_empty_list():
    result = embed_lists(fake_embedder(FakeServer()), [])
    rows, usage = result.rows, result.usage
    assert rows == []
    assert usage.texts == 0


def test_ctrl_c_while_lists_are_converted_withdraws_and_restores_the_garbage_collector(tmp_path):
    with OpenAIServer() as server:
        process = start(
            """
            import gc
            from embedkit_core.adapters.base import embed_lists
            found = gc.get_threshold()
            embedder.embed(["warm up"])
            try:
                embed_lists(embedder, [f"text {i}" for i in range(20_000)])
            except KeyboardInterrupt:
                print("interrupted", gc.get_threshold() == found and gc.isenabled())
            embedder.embed(["the next one"])
            """,
            server.base_url,
            tmp_path,
        )
        assert interrupt(process, server) == "interrupted True\n"
        server.release()
        finish(process)
        assert [request.texts for request in server.requests[17:]] == [("the next one",)]


async def test_a_cancelled_caller_withdraws_while_lists_are_converted():
    server = FakeServer()
    embedder = fake_embedder(server, max_concurrency=1, max_batch_texts=10)
    embedder.embed(["warm up"])
    server.hold()
    task = asyncio.create_task(aembed_lists(embedder, [f"text {i}" for i in range(100)]))
    await asyncio.to_thread(server.wait_for_requests, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.release()
    await asyncio.to_thread(embedder.embed, ["the next one"])
    assert [seen.texts for seen in server.received[2:]] == [("the next one",)]


# Queries from memory


@pytest.fixture
def known(tmp_path):
    """An embedder that has a query in memory, and its server."""
    server = FakeServer()
    embedder = fake_embedder(server, cache=tmp_path)
    embedder.embed_query("known")
    embedder.embed_query("known")
    return embedder, server


def test_every_method_serves_a_query_from_memory_and_counts_it(known):
    embedder, server = known
    expected = server.vector("known", server.received[0].body).tolist()
    before = embedder.usage
    rows = [
        embedder.embed_query("known").tolist(),
        embedder.embed(["known"], input_type="query")[0].tolist(),
        asyncio.run(embedder.aembed_query("known")).tolist(),
        embed_lists(embedder, ["known"], "query").rows[0],
        asyncio.run(aembed_lists(embedder, ["known"], "query")).rows[0],
    ]
    assert rows == [expected] * 5
    assert embedder.usage.texts - before.texts == embedder.usage.cache_hits - before.cache_hits == 5
    assert embedder.usage.requests == len(server.received) == 1


def test_each_query_result_is_a_separate_object(known):
    embedder, _ = known
    first = embedder.embed_query("known")
    kept = first.copy()
    first[:] = 7
    rows = embed_lists(embedder, ["known"], "query").rows
    rows[0][0] = 7.0
    assert np.array_equal(embedder.embed_query("known"), kept)
    assert embed_lists(embedder, ["known"], "query").rows[0] == kept.tolist()


def test_an_invalid_query_is_refused_by_every_method(known):
    def check(bad):
        embedder, server = known
        for method in (
            embedder.embed_query,
            lambda text: asyncio.run(embedder.aembed_query(text)),
            lambda text: embed_lists(embedder, [text], "query"),
        ):
            with pytest.raises(InputError):
                method(bad)
        assert len(server.received) == 1
        assert embedder.usage.texts == 2

    check_rows(["", " \n", "\ud800", None, 7, b"bytes"], check)


# Lookups without an engine


def test_a_process_with_cache_hits_only_starts_no_engine(tmp_path):
    with OpenAIServer() as server:
        Embedder("text-embedding-3-small", base_url=server.base_url, api_key="test-key", cache=tmp_path).embed(["one"])
        process = start(
            """
            assert embedder.embed(["one"]).usage.cache_hits == 1
            print([thread.name for thread in threading.enumerate()])
            """,
            server.base_url,
            tmp_path,
        )
        assert finish(process) == "['MainThread']\n"
        assert server.billed_texts["one"] == 1


def test_a_text_that_the_first_engine_finishes_during_a_lookup_is_not_paid_again(tmp_path):
    with OpenAIServer() as server:
        process = start(
            """
            class Slow:
                def __init__(self):
                    self.rows, self.asked, self.go_on = {}, threading.Event(), threading.Event()
                def get_many(self, keys):
                    found = {key: self.rows[key] for key in keys if key in self.rows}
                    if not self.asked.is_set():
                        self.asked.set()
                        assert self.go_on.wait(30)
                    return found
                def set_many(self, items):
                    self.rows.update(items)
                def close(self):
                    pass

            shared = Slow()
            settings = {"base_url": url, "api_key": "test-key", "cache": shared}
            one, other = (Embedder("text-embedding-3-small", **settings) for _ in range(2))
            found = []
            thread = threading.Thread(target=lambda: found.append(one.embed(["text"])))
            thread.start()
            assert shared.asked.wait(30)
            other.embed(["text"])
            shared.go_on.set()
            thread.join(30)
            print(found[0].usage.cache_hits)
            """,
            server.base_url,
            tmp_path,
        )
        assert finish(process) == "1\n"
        assert server.billed_texts["text"] == 1
        assert len(server.requests) == 1
