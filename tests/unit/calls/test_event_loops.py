"""Async calls never block an event loop: neither the caller's nor the engine's.

BlockBuster raises an error for each blocking call on a thread with a running event loop, as `langgraph dev` does.
"""

import asyncio
import importlib.util
import threading
from pathlib import Path

import anyio
import numpy as np
import pytest
from blockbuster import blockbuster_ctx
from support.bedrock_server import BedrockServer
from support.caches import DictCache, GatedCache
from support.cohere_server import CohereServer
from support.embedders import MINILM, core_embedder, fake_embedder, needs_local_model, openai_embedder
from support.google_server import GoogleServer
from support.json_servers import NomicServer
from support.openai_server import OpenAIServer
from support.scripts import finish, start
from support.voyage_server import VoyageServer

from embedkit_core import Embedder, EmbedKitError
from embedkit_core.cache import open_cache
from embedkit_core.common.threads import LOOKUPS
from embedkit_core.providers.openai.tokenizer import tiktoken_counter
from embedkit_core.testing import FakeServer

TEXTS = [f"text {n}" for n in range(300)]


async def test_a_repeated_query_is_sent_once_also_by_other_embedders(tmp_path):
    server = FakeServer()
    embedders = [fake_embedder(server, cache=tmp_path) for _ in range(3)]
    with blockbuster_ctx():
        for embedder in embedders:
            await embedder.aembed_query("one question")
    assert len(server.received) == 1
    assert [embedder.usage.cache_hits for embedder in embedders] == [0, 1, 1]


async def test_no_async_method_blocks_the_event_loop(tmp_path):
    server = FakeServer(max_words=50)
    embedders = [fake_embedder(server, cache=tmp_path) for _ in range(2)]
    with blockbuster_ctx():
        for embedder in embedders:
            async with embedder:
                await embedder.aembed_query("one question")
                await embedder.aembed_documents(TEXTS)
                await embedder.aembed(TEXTS[:1])
                await embedder.aembed(["word " * 100])
                assert len([row async for row in embedder.aembed_iter([*TEXTS, "another text"])]) == 301
                assert (await embedder.aestimate([*TEXTS, "a third text"])).cache_hits == 300
    assert embedders[0].usage.requests
    assert not embedders[1].usage.requests


async def test_a_tokenizer_is_not_loaded_on_the_event_loop_for_a_text_that_is_in_memory(monkeypatch, request, tmp_path):
    request.addfinalizer(tiktoken_counter.cache_clear)
    folder = Path(importlib.util.find_spec("llama_index.core").origin).parent / "_static" / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    text = "x" * 40_000  # maybe over the limit, so that its tokens are counted
    with OpenAIServer() as server:
        embedder = openai_embedder(server, cache=tmp_path)
        for _ in range(2):  # the second look-up puts it into memory
            embedder.embed_query(text)
        for texts in [text], [text, "not cached"]:
            tiktoken_counter.cache_clear()
            with blockbuster_ctx():
                result = await embedder.aembed(texts, input_type="query")
            assert (result.usage.cache_hits, result.maybe_truncated) == (1, ())


async def test_the_async_methods_of_the_frameworks_do_not_block_the_event_loop(framework_class, tmp_path):
    server = FakeServer()
    methods = {
        "EmbedKitEmbeddings": ("aembed_query", "aembed_documents"),
        "EmbedKitEmbedding": ("aget_query_embedding", "aget_text_embedding_batch"),
    }
    models = [framework_class(model="fake:model", base_url=server.url, cache=str(tmp_path)) for _ in range(2)]
    with blockbuster_ctx():
        for model in models:
            query, documents = (getattr(model, name) for name in methods[framework_class.__name__])
            await query("one question")
            assert len(await documents(TEXTS)) == len(TEXTS)
            await model.aestimate(TEXTS)
    assert [bool(core_embedder(model).usage.requests) for model in models] == [True, False]


FIRST_REQUESTS = """
from blockbuster import blockbuster_ctx
model = sys.argv[3]
settings = {} if model.startswith("local:") else {"base_url": url, "api_key": "test-key"}
embedder = Embedder(model, cache=cache, max_retries=0, **settings)
async def main():
    with blockbuster_ctx():
        await embedder.aembed_query("one question")
        await embedder.aembed([f"text {n}" for n in range(200)])
        await embedder.aclose()
        await embedder.aembed_query("another question")
        assert not [one async for one in embedder.aembed_iter([])]
asyncio.run(main())
assert embedder.usage.sent == 202
"""


@pytest.mark.parametrize(
    ("model", "server_class"),
    [
        ("openai:text-embedding-3-small", OpenAIServer),
        ("voyage:voyage-4", VoyageServer),
        ("cohere:embed-v4.0", CohereServer),
        ("nomic:nomic-embed-text-v1.5", NomicServer),
        ("bedrock:amazon.titan-embed-text-v2:0", BedrockServer),
        ("google:gemini-embedding-2", GoogleServer),
    ],
    ids=["openai", "voyage", "cohere", "nomic", "bedrock", "google"],
)
def test_the_first_request_of_a_process_does_not_block_an_event_loop(model, server_class, tmp_path):
    """The SDK is imported, certificates are read and the platform's name is determined on other threads."""
    with server_class() as running:
        finish(start(FIRST_REQUESTS, running.base_url, tmp_path, model))


@needs_local_model
def test_loading_a_local_model_does_not_block_an_event_loop(tmp_path):
    finish(start(FIRST_REQUESTS, "http://127.0.0.1:9/v1", tmp_path, MINILM))


NO_ENGINE = """
from embedkit_core.engine.runtime.process import is_running
async def main():
    assert len((await embedder.aembed(["one", "two"])).vectors) == 2
    assert len(await embedder.aembed_query("one")) == 1536
    assert len((await embedder.aembed([f"text {n}" for n in range(200)])).vectors) == 200
    await embedder.aclose()
asyncio.run(main())
assert embedder.usage.cache_hits == 203 and not embedder.usage.requests
assert not is_running()
assert {thread.name for thread in threading.enumerate()} <= {"MainThread", "embedkit-lookup", "embedkit-work"}
"""


def test_async_calls_with_all_texts_in_the_cache_start_no_engine(server, tmp_path):
    texts = ["one", "two", *(f"text {n}" for n in range(200))]
    options = {"base_url": server.base_url, "api_key": "test-key", "cache": tmp_path}
    with Embedder("text-embedding-3-small", **options) as embedder:
        embedder.embed(texts)
    finish(start(NO_ENGINE, server.base_url, tmp_path))


async def test_a_thousand_concurrent_queries_use_two_threads_and_get_their_own_vectors(tmp_path):
    server = FakeServer()
    embedder = fake_embedder(server, cache=tmp_path)
    queries = [f"question {n}" for n in range(1000)]
    expected = embedder.embed(queries, input_type="query").vectors
    embedder = fake_embedder(server, cache=tmp_path)
    rows = await asyncio.gather(*map(embedder.aembed_query, queries))
    assert np.array_equal(np.stack(rows), expected)
    assert len([thread for thread in threading.enumerate() if thread.name == "embedkit-lookup"]) <= 2
    assert embedder.usage.cache_hits == 1000


async def test_a_query_in_memory_needs_no_other_thread(tmp_path, monkeypatch):
    embedder = fake_embedder(FakeServer(), cache=tmp_path)
    first = await embedder.aembed_query("one question")
    await embedder.aembed_query("one question")  # from the disk into memory
    monkeypatch.setattr(LOOKUPS, "submit", None)
    assert np.array_equal(await embedder.aembed_query("one question"), first)


async def test_queries_wait_for_a_slow_cache_at_the_same_time():
    cache, together = DictCache(), threading.Barrier(8)
    read = cache.get_many
    cache.get_many = lambda keys: (together.wait(20), read(keys))[1]
    embedder = fake_embedder(FakeServer(), cache=cache)
    await asyncio.gather(*(embedder.aembed_query(f"question {n}") for n in range(8)))
    assert not together.broken


async def test_a_slow_bulk_look_up_does_not_delay_a_query(tmp_path):
    slow = GatedCache()
    stuck = [asyncio.create_task(fake_embedder(FakeServer(), cache=slow).aembed(TEXTS)) for _ in range(3)]
    assert await asyncio.to_thread(slow.started.wait, 20)
    server = FakeServer()
    fake_embedder(server, cache=tmp_path).embed_query("one question")
    await fake_embedder(server, cache=tmp_path).aembed_query("one question")
    assert len(server.received) == 1
    assert not any(task.done() for task in stuck)
    slow.gate.set()
    await asyncio.gather(*stuck)


async def test_a_cache_closed_during_async_look_ups_loses_nothing(tmp_path):
    server = FakeServer()
    embedder = fake_embedder(server, cache=tmp_path)
    embedder.embed(TEXTS)
    tasks = [asyncio.create_task(embedder.aembed([text])) for text in TEXTS]
    for _ in range(10):
        await asyncio.sleep(0)
        open_cache(tmp_path).close()
    await asyncio.gather(*tasks)
    await embedder.aclose()
    assert embedder.usage.cache_hits == len(TEXTS)


async def test_a_cancelled_look_up_counts_nothing_and_sends_nothing(tmp_path):
    server = FakeServer()
    cache = GatedCache()
    embedder = fake_embedder(server, cache=cache)
    tasks = [asyncio.create_task(embedder.aembed([text])) for text in TEXTS[:5]]
    assert await asyncio.to_thread(cache.started.wait, 20)
    for task in tasks:
        task.cancel()
    assert all(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*tasks, return_exceptions=True))
    cache.gate.set()
    await embedder.aclose()
    assert embedder.usage.texts == 0
    assert not server.received


FORK = """
async def main():
    texts = [f"text {n}" for n in range(200)]
    before = embedder.embed(texts).vectors
    tasks = [asyncio.create_task(embedder.aembed([text])) for text in texts]
    await asyncio.sleep(0)  # the look-ups begin
    child = os.fork()
    if child == 0:
        same = (embedder.embed(texts).vectors == before).all()
        rows = []
        thread = threading.Thread(target=lambda: rows.append(asyncio.run(embedder.aembed(texts))))
        thread.start()
        thread.join()
        os._exit(0 if same and (rows[0].vectors == before).all() and embedder.usage.requests == sent else 1)
    rows = await asyncio.gather(*tasks)
    assert all((row.vectors[0] == other).all() for row, other in zip(rows, before))
    assert os.waitpid(child, 0)[1] == 0
embedder.embed([f"text {n}" for n in range(200)])
sent = embedder.usage.requests
asyncio.run(main())
"""


def test_a_child_forked_during_async_look_ups_has_its_own_threads(server, tmp_path):
    finish(start(FORK, server.base_url, tmp_path))


ASYNC_CALLS = [
    lambda embedder: embedder.aembed(["one"]),
    lambda embedder: embedder.aembed_query("one"),
    lambda embedder: embedder.aembed_documents(TEXTS),
    lambda embedder: embedder.aestimate(TEXTS),
    lambda embedder: embedder.aclose(),
    lambda embedder: anext(embedder.aembed_iter(TEXTS)),
]


@pytest.mark.parametrize("call", ASYNC_CALLS)
def test_an_async_call_without_asyncio_such_as_in_trio_gets_an_error_with_the_way_to_do_it(call):
    server = FakeServer()
    call = call(fake_embedder(server))
    with pytest.raises(EmbedKitError, match=r"trio\.to_thread\.run_sync"):
        call.__await__().send(None)
    assert not server.received


def test_anyio_on_asyncio_works(tmp_path):
    server = FakeServer()
    embedder = fake_embedder(server, cache=tmp_path)

    async def main():
        async with anyio.create_task_group() as group:
            for n in range(3):
                group.start_soon(embedder.aembed_query, f"question {n}")
        return [row async for row in embedder.aembed_iter(TEXTS)]

    assert len(anyio.run(main)) == len(TEXTS)
    assert len(anyio.run(main)) == len(TEXTS)
    assert embedder.usage.cache_hits == len(TEXTS) + 3
