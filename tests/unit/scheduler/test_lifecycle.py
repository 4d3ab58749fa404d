"""Event loops, threads, forks, interrupts, kills and exits."""

import asyncio
import copy
import threading

import numpy as np
import pytest
from support.caches import GatedCache
from support.embedders import cancel_in_flight, fake_embedder, openai_embedder
from support.openai_server import OpenAIServer, vector_of
from support.scripts import finish, interrupt, start

from embedkit_core import EmbedKitError
from embedkit_core.common.threads import BULK
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer


def test_one_embedder_serves_two_event_loops_a_thread_and_sync_calls_in_a_loop():
    with OpenAIServer() as server:
        embedder = openai_embedder(server)
        rows = [asyncio.run(embedder.aembed_query(f"run {i}")) for i in range(2)]
        found: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: found.append(embedder.embed_query("thread")))
        thread.start()
        thread.join()

        async def sync_inside() -> np.ndarray:
            return embedder.embed_query("inside a loop")

        rows += [*found, asyncio.run(sync_inside())]
        texts = ["run 0", "run 1", "thread", "inside a loop"]
        assert all(np.array_equal(row, vector_of(text)) for row, text in zip(rows, texts, strict=True))


def test_a_forked_child_has_an_engine_of_its_own_while_the_parent_goes_on(tmp_path):
    """The process forks with requests in flight and the cache open."""
    with OpenAIServer(latency=0.05) as server:
        process = start(
            """
            embedder.embed(["before"])
            texts = [f"parent {i}" for i in range(600)]
            worker = threading.Thread(target=embedder.embed, args=(texts,))
            worker.start()
            pid = os.fork()
            if pid == 0:
                assert embedder.embed(["before"]).usage.cache_hits == 1
                assert len(embedder.embed([f"child {i}" for i in range(200)]).vectors) == 200
                assert asyncio.run(embedder.aembed_query("child query")).shape == (1536,)
                sys.exit(7)
            worker.join()
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), len(embedder.embed(texts).vectors))
            """,
            server.base_url,
            tmp_path,
        )
        assert finish(process).split() == ["7", "600"]
        assert set(server.billed_texts.values()) == {1}
        again = openai_embedder(server, cache=tmp_path).embed([f"child {i}" for i in range(200)])
        assert again.usage.cache_hits == 200


@pytest.mark.parametrize(
    "module", ["openai._client", "embedkit_core.engine.runtime.engine", "embedkit_core.engine.scheduler.scheduler"]
)
def test_a_fork_waits_for_an_import_in_progress(tmp_path, module):
    """Otherwise the child has a partial module, whose import lock no thread releases."""
    with OpenAIServer() as server:
        process = start(
            """
            begun, go_on = threading.Event(), threading.Event()

            class Slow:
                def find_spec(self, name, path=None, target=None):
                    if name == sys.argv[-1]:
                        begun.set()
                        assert go_on.wait(20)

            sys.meta_path.insert(0, Slow())
            worker = threading.Thread(target=embedder.embed, args=(["parent"],))
            worker.start()
            assert begun.wait(20)
            threading.Timer(0.3, go_on.set).start()
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                go_on.set()
                os._exit(len(embedder.embed(["child"]).vectors))
            worker.join()
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            """,
            server.base_url,
            tmp_path,
            module,
        )
        assert finish(process) == "1\n"
        assert server.billed_texts == {"parent": 1, "child": 1}


def test_a_fork_waits_for_a_progress_bar_in_progress(tmp_path):
    """Otherwise the bar of the child waits for a lock of tqdm that no thread releases."""
    with OpenAIServer() as server:
        process = start(
            """
            import io
            begun, go_on = threading.Event(), threading.Event()

            class Terminal(io.StringIO):
                def write(self, text):
                    begun.set()
                    assert go_on.wait(20)

            sys.stderr, stderr = Terminal(), sys.stderr
            worker = threading.Thread(target=embedder.embed, args=(["parent", "too"],), kwargs={"progress": True})
            worker.start()
            assert begun.wait(20)
            threading.Timer(0.3, go_on.set).start()
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                sys.stderr = io.StringIO()
                os._exit(len(embedder.embed(["child", "too"], progress=True).vectors))
            worker.join()
            sys.stderr = stderr
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            """,
            server.base_url,
            tmp_path,
        )
        assert finish(process) == "2\n"


def test_ctrl_c_returns_at_once_sends_nothing_new_and_keeps_what_was_in_flight(tmp_path):
    with OpenAIServer() as server:
        process = start(
            """
            embedder.embed(["warm up"])
            try:
                embedder.embed([f"text {i}" for i in range(20_000)])
            except KeyboardInterrupt:
                print("interrupted")
            embedder.embed(["the next one"])
            """,
            server.base_url,
            tmp_path,
        )
        assert interrupt(process, server) == "interrupted\n"
        in_flight = [text for request in server.requests[1:] for text in request.texts]
        server.release()
        finish(process)
        assert [request.texts for request in server.requests[17:]] == [("the next one",)]
        result = openai_embedder(server, cache=tmp_path).embed(in_flight)
        assert result.usage.cache_hits == len(in_flight)
        assert np.array_equal(result.vectors[-1], vector_of(in_flight[-1]))


def test_a_rerun_after_a_kill_pays_again_only_for_requests_in_flight(tmp_path):
    """Texts that the killed process had cached are not sent again."""
    body = 'embedder.embed([f"text {i}" for i in range(6000)])'
    with OpenAIServer(latency=0.05) as server:
        process = start(body, server.base_url, tmp_path)
        server.wait_for_requests(24, timeout=30)
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        server.wait_in_flight(0)
        before = len(server.requests)
        finish(start(body, server.base_url, tmp_path))
        assert len(server.billed_texts) == 6000
        twice = [text for text, n in server.billed_texts.items() if n > 1]
        per_request = max(len(request.texts) for request in server.requests[:before])
        assert len(twice) <= 16 * per_request
        assert before * per_request > len(twice)


def test_a_cancelled_call_sends_nothing_new_and_its_requests_are_cached(tmp_path):
    with OpenAIServer() as server:
        embedder = openai_embedder(server, cache=tmp_path, max_concurrency=2, max_batch_texts=32)
        embedder.embed(["warm up"])
        server.hold()

        asyncio.run(cancel_in_flight(embedder, server, [f"text {i}" for i in range(500)], 3))
        sent = [text for request in server.requests[1:] for text in request.texts]
        assert len(sent) == 64
        server.release()
        # In flight, just cached or hits: they are not paid again.
        assert len(embedder.embed(sent).vectors) == 64
        assert len(server.requests) == 3
        assert max(server.billed_texts.values()) == 1


def test_a_process_that_closes_nothing_exits_cleanly(tmp_path):
    with OpenAIServer() as server:
        out = finish(start('print(embedder.embed_query("hello").shape)', server.base_url, tmp_path))
        assert out == "(1536,)\n"
        assert openai_embedder(server, cache=tmp_path).embed(["hello"]).usage.cache_hits == 1
        assert not list(tmp_path.rglob("*-wal"))


def test_close_closes_the_connections_and_the_next_call_opens_new_ones():
    with OpenAIServer() as server:
        with openai_embedder(server) as embedder:
            embedder.embed_query("one")
            account = engine().account(embedder.provider)
        closed = threading.Event()
        engine().call(account, closed.set)
        assert closed.wait(10)
        embedder.embed_query("two")
        assert server.connections == 2
        asyncio.run(embedder.aclose())


def test_closing_a_copy_leaves_the_connection_of_the_original_open():
    with OpenAIServer() as server, openai_embedder(server) as embedder:
        embedder.embed_query("one")
        copied = copy.copy(embedder)
        copied.embed_query("two")
        copied.close()
        account, closed = engine().account(embedder.provider), threading.Event()
        engine().call(account, closed.set)
        assert closed.wait(10)
        embedder.embed_query("three")
        assert server.connections == 1


def test_a_sync_method_on_the_engine_thread_names_its_async_counterpart():
    server = FakeServer()
    embedder = fake_embedder(server)
    embedder.embed_query("start the engine")
    found: list[BaseException] = []
    done = threading.Event()

    def call() -> None:
        try:
            embedder.embed(["one"])
        except EmbedKitError as error:
            found.append(error)
        done.set()

    engine()._loop.call_soon_threadsafe(call)
    assert done.wait(10)
    assert "Use aembed()" in str(found[0])


@pytest.mark.parametrize("broken_method", ["replied", "committed"])
def test_an_internal_error_is_raised_and_wakes_all_callers(broken_method):
    server = FakeServer()
    embedder = fake_embedder(server)
    embedder.embed(["warm up"])
    setattr(engine().account(embedder.provider).scheduler, broken_method, None)
    with pytest.raises(EmbedKitError, match="Internal error"):
        embedder.embed(["one"])
    assert len(embedder.embed(["one"]).vectors) == 1
    assert len(embedder.embed(["two"]).vectors) == 1


async def test_a_call_cancelled_during_its_cache_lookup_leaves_nothing_behind():
    server, cache = FakeServer(), GatedCache()
    embedder = fake_embedder(server, cache=cache)
    task = asyncio.create_task(embedder.aembed([f"text {i}" for i in range(100)]))
    await asyncio.to_thread(cache.started.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cache.gate.set()
    assert await asyncio.to_thread(cache.finished.wait, 20)
    await asyncio.to_thread(BULK.stop)
    assert not engine().account(embedder.provider).scheduler.recent.lookups
    assert not server.received
