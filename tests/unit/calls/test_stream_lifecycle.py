"""Streams that are closed, abandoned, interrupted, cancelled or forked leave nothing behind."""

import asyncio
import contextlib
import gc
import itertools
import threading
from collections import deque
from collections.abc import Iterator
from typing import ClassVar

import pytest
from support.caches import GatedCache
from support.openai_server import OpenAIServer
from support.scripts import finish, interrupt, start
from support.streams import CHUNK_TEXTS, LOOKAHEAD, CountingSource, are_vectors_of, async_source, stream_embedder

from embedkit_core import Embedder
from embedkit_core.common.threads import BULK
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer

TEXTS = [f"text {i}" for i in range(3 * LOOKAHEAD)]


def one_slot(server: OpenAIServer, **settings) -> Embedder:
    return Embedder(
        "text-embedding-3-small",
        base_url=server.base_url,
        api_key="test-key",
        **{"cache": False, "max_concurrency": 1, "dimensions": 8} | settings,
    )


def texts_of_more_than_two_chunks(server: OpenAIServer) -> Iterator[str]:
    """Yield texts; the two requests of the first chunk are answered after the third chunk has started."""
    server.hold()
    for place, text in enumerate(TEXTS):
        if place == 2 * CHUNK_TEXTS:
            server.release(2)
        yield text


def assert_nothing_more_was_sent(embedder: Embedder, server: OpenAIServer) -> None:
    """Check that one more request was sent, and that the next caller finds no waiting texts."""
    server.wait_for_requests(3)
    server.release()
    embedder.embed(["the next one"])
    assert len(server.requests) == 4
    assert server.requests[-1].texts == ("the next one",)
    assert not engine().account(embedder.provider).scheduler.registry.items


@pytest.mark.parametrize("how", ["closed", "abandoned", "left by an exception"])
def test_an_abandoned_stream_sends_nothing_new(how):
    with OpenAIServer() as server:
        embedder = one_slot(server)
        source = CountingSource(texts_of_more_than_two_chunks(server))
        rows = embedder.embed_iter(source)
        next(rows)
        if how == "closed":
            rows.close()
        elif how == "abandoned":
            del rows
            gc.collect()
        else:
            with contextlib.suppress(LookupError):
                rows.throw(LookupError())
        assert_nothing_more_was_sent(embedder, server)
        assert source.pulled <= LOOKAHEAD
        assert next(source) == TEXTS[source.pulled - 1]


@pytest.mark.parametrize("how", ["closed", "abandoned", "cancelled"])
def test_an_abandoned_async_stream_sends_nothing_new_and_leaves_no_task(how):
    async def leave(embedder: Embedder) -> None:
        rows = embedder.aembed_iter(async_source(texts_of_more_than_two_chunks(server)))
        await anext(rows)
        await asyncio.to_thread(server.wait_for_requests, 3)
        if how == "closed":
            await rows.aclose()
        elif how == "abandoned":
            del rows
            gc.collect()
        else:

            async def rest() -> None:
                async for _ in rows:
                    pass

            task = asyncio.create_task(rest())
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110 - tasks have no common event
            await asyncio.sleep(0)

    with OpenAIServer() as server:
        embedder = one_slot(server)
        asyncio.run(leave(embedder))
        assert_nothing_more_was_sent(embedder, server)


async def test_closing_a_stream_ends_the_wait_for_its_source():
    ended = False

    async def source():
        nonlocal ended
        try:
            yield "one"
            await asyncio.Event().wait()
        finally:
            ended = True

    rows = stream_embedder(FakeServer()).aembed_iter(source())
    assert are_vectors_of([await anext(rows)], ["one"])
    await rows.aclose()
    assert ended
    assert len(asyncio.all_tasks()) == 1


def test_an_event_loop_that_ends_during_a_stream_leaves_nothing_behind():
    async def begin(embedder: Embedder) -> None:
        kept.append(embedder.aembed_iter(async_source(TEXTS)))
        await anext(kept[0])

    kept: list = []
    embedder = stream_embedder(FakeServer())
    asyncio.run(begin(embedder))
    with pytest.raises(StopAsyncIteration):
        asyncio.run(anext(kept[0]))
    embedder.embed(["the next one"])
    assert not engine().account(embedder.provider).scheduler.registry.items


def test_a_stream_that_is_never_iterated_pulls_nothing():
    source = CountingSource(TEXTS)
    embedder = stream_embedder(FakeServer())
    embedder.embed_iter(source).close()
    del embedder
    assert source.pulled == 0


def test_ctrl_c_ends_a_stream_at_once_and_sends_nothing_new(tmp_path):
    with OpenAIServer() as server:
        process = start(
            """
            embedder.embed(["warm up"])
            try:
                for row in embedder.embed_iter(f"text {i}" for i in range(10**9)):
                    pass
            except KeyboardInterrupt:
                print("interrupted")
            embedder.embed(["the next one"])
            """,
            server.base_url,
            tmp_path,
        )
        assert interrupt(process, server) == "interrupted\n"
        server.release()
        finish(process)
        assert [request.texts for request in server.requests[17:]] == [("the next one",)]


def test_a_stream_cannot_be_continued_in_a_forked_process(tmp_path):
    with OpenAIServer() as server:
        process = start(
            """
            rows = embedder.embed_iter(f"text {i}" for i in range(10_000))
            next(rows)
            pid = os.fork()
            if pid == 0:
                try:
                    for row in rows:
                        pass
                except Exception as error:
                    print("before a fork" in str(error), flush=True)
                assert len(list(embedder.embed_iter(["a stream of its own"]))) == 1
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), sum(1 for row in rows))
            """,
            server.base_url,
            tmp_path,
        )
        assert finish(process).split() == ["True", "7", "9999"]


def test_a_process_can_exit_during_a_stream(tmp_path):
    with OpenAIServer() as server:
        body = """
            rows = embedder.embed_iter(f"text {i}" for i in range(100_000))
            print(next(rows).shape)
            """
        process = start(body, server.base_url, tmp_path)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "(1536,)\n", "")
        assert len(server.billed_texts) < 20_000


class Counted(str):
    """A text that counts its living instances; deques, since several threads release them."""

    born: ClassVar[deque[None]] = deque()
    gone: ClassVar[deque[None]] = deque()
    most = 0

    def __new__(cls, text):
        cls.born.append(None)
        cls.most = max(cls.most, len(cls.born) - len(cls.gone))
        return super().__new__(cls, text)

    def __del__(self):
        self.gone.append(None)


@pytest.mark.parametrize("method", ["sync", "async"])
def test_a_long_stream_holds_about_as_many_texts_as_its_lookahead(method, tmp_path):
    n = 30 * CHUNK_TEXTS
    embedder = stream_embedder(FakeServer(dimensions=2), cache=tmp_path)
    Counted.most = len(Counted.born) - len(Counted.gone)
    texts = (Counted(f"text {i}") for i in range(n))

    async def count() -> int:
        return len([1 async for _ in embedder.aembed_iter(texts)])

    assert n == (sum(1 for _ in embedder.embed_iter(texts)) if method == "sync" else asyncio.run(count()))
    # The threads of the engine, the writer and the pool release a chunk a moment later.
    assert LOOKAHEAD / 2 <= Counted.most <= 2 * LOOKAHEAD
    embedder.embed(["the next one"])
    scheduler = engine().account(embedder.provider).scheduler
    assert not scheduler.registry.items
    assert not scheduler.recent.lookups
    assert not list(scheduler.recent)


async def test_a_stream_cancelled_during_its_cache_lookup_leaves_nothing_behind():
    """Also for a chunk that is started again because of an invalid text."""
    server, cache = FakeServer(), GatedCache()
    embedder = Embedder("fake:model", base_url=server.url, cache=cache)
    rows = embedder.aembed_iter([*TEXTS[:100], " "])
    task = asyncio.create_task(anext(rows))
    await asyncio.to_thread(cache.started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cache.gate.set()
    assert await asyncio.to_thread(cache.finished.wait, 20)
    await asyncio.to_thread(BULK.stop)
    assert not engine().account(embedder.provider).scheduler.recent.lookups
    assert not server.received


async def test_a_cancelled_chunk_with_an_invalid_text_is_not_started_again(monkeypatch):
    cache, found, gate = GatedCache(), threading.Event(), threading.Event()
    cache.gate.set()

    def reason_for(text):
        found.set()
        assert gate.wait(20)
        return "flawed"

    monkeypatch.setattr("embedkit_core.calls.stream_parts.reason_for", reason_for)
    embedder = Embedder("fake:model", base_url=(server := FakeServer()).url, cache=cache)
    task = asyncio.create_task(anext(embedder.aembed_iter([*TEXTS[:100], " "])))
    await asyncio.to_thread(found.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await asyncio.to_thread(BULK.stop)
    assert not cache.started.is_set()
    assert not server.received


def test_streams_and_queries_share_an_embedder_from_many_threads(tmp_path):
    server = FakeServer()
    embedder = stream_embedder(server, cache=tmp_path, max_concurrency=4)
    found: dict[int, bool] = {}

    def work(n: int) -> None:
        texts = [f"text {i}" for i in itertools.chain(range(n * 100, n * 100 + 600), range(300))]
        found[n] = are_vectors_of(list(embedder.embed_iter(texts)), texts)
        found[n + 10] = are_vectors_of([embedder.embed_query(f"query {n}")], [f"query {n}"], role="query")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(found.values())
    assert set(server.billed.values()) == {1}
