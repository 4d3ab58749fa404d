"""LlamaIndex applications: indexes, query engines, ingestion; and both frameworks in one process."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import TokenTextSplitter
from llama_index.core.schema import MetadataMode, TextNode
from support.embedders import numbered, texts_sent
from support.openai_server import OpenAIServer, vector_of
from support.waiting import wait_until_joined

from embedkit_core.testing import FakeServer, fake_vector
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

TEXTS = numbered(20)
ASKED = "which of them?"


@pytest.fixture(autouse=True)
def _settings_as_they_were():
    yield
    Settings._embed_model = Settings._llm = None


def options_for(server, **options):
    given = {"model": "openai:text-embedding-3-small", "base_url": server.base_url, "api_key": "test-key"}
    return {**given, "cache": False, **options}


def index_model(server, **options):
    return EmbedKitEmbedding(**options_for(server, **options))


def lang(server, **options):
    return EmbedKitEmbeddings(**options_for(server, **options))


def nodes(texts=TEXTS):
    return [TextNode(text=text) for text in texts]


def nearest(asked, k, texts=TEXTS, vector=vector_of, query_vector=vector_of):
    """Return the texts in the expected order."""
    scores = [float(vector(text) @ query_vector(asked)) for text in texts]
    return [texts[i] for i in np.argsort(scores)[::-1][:k]]


def contents(found):
    return [one.node.get_content() for one in found]


# Indexes


@pytest.mark.parametrize("use_async", [False, True])
async def test_an_index_ranks_by_the_servers_vectors(server, use_async):
    index = VectorStoreIndex(nodes(), embed_model=index_model(server), use_async=use_async)
    retriever = index.as_retriever(similarity_top_k=5)
    assert contents(retriever.retrieve(ASKED)) == nearest(ASKED, 5)
    assert contents(await retriever.aretrieve("another?")) == nearest("another?", 5)
    assert texts_sent(server) == [*TEXTS, ASKED, "another?"]


async def test_a_rebuilt_index_sends_nothing(server, tmp_path):
    VectorStoreIndex(nodes([*TEXTS, *TEXTS]), embed_model=index_model(server, cache=tmp_path))
    assert texts_sent(server) == TEXTS
    again = index_model(server, cache=tmp_path)
    for use_async in (False, True):
        index = VectorStoreIndex(nodes(), embed_model=again, use_async=use_async)
        assert contents(await index.as_retriever(similarity_top_k=3).aretrieve(TEXTS[7]))[0] == TEXTS[7]
    assert (again.usage.sent, again.usage.cache_hits) == (0, 42)


def test_an_index_of_documents_embeds_its_chunks_with_the_global_model(server):
    Settings.embed_model = model = index_model(server)
    assert Settings.embed_model is model
    splitter = TokenTextSplitter(chunk_size=4, chunk_overlap=0, separator="\n", tokenizer=str.split)
    index = VectorStoreIndex.from_documents([Document(text="\n".join(TEXTS))], transformations=[splitter])
    pieces = [node.get_content() for node in index.docstore.docs.values()]
    assert len(pieces) > 5
    assert sorted(texts_sent(server)) == sorted(pieces)
    assert contents(index.as_retriever(similarity_top_k=3).retrieve(ASKED)) == nearest(ASKED, 3, pieces)
    assert model.usage.texts == len(pieces) + 1


def test_a_growing_index_sends_only_the_new_text(server, tmp_path):
    index = VectorStoreIndex(nodes(), embed_model=index_model(server))
    index.insert_nodes(nodes(["new"]))
    index.insert(Document(text="newer"))
    assert texts_sent(server) == [*TEXTS, "new", "newer"]
    index.storage_context.persist(tmp_path)
    stored = StorageContext.from_defaults(persist_dir=str(tmp_path))
    loaded = load_index_from_storage(stored, embed_model=index_model(server))
    assert contents(loaded.as_retriever(similarity_top_k=1).retrieve("newer")) == ["newer"]
    assert texts_sent(server) == [*TEXTS, "new", "newer", "newer"]  # without a cache, the query is sent too


@pytest.mark.parametrize("mode", ["default", "mmr"])
async def test_an_index_embeds_queries_as_queries(mode):
    server = FakeServer()
    model = EmbedKitEmbedding(model="fake:any", base_url=server.url, cache=False)
    kwargs = {"vector_store_kwargs": {"mmr_threshold": 1.0}} if mode == "mmr" else {}
    index = VectorStoreIndex(nodes(), embed_model=model)
    retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode=mode, **kwargs)
    roles = [lambda text, role=role: fake_vector(text, role=role, model="any") for role in ("document", "query")]
    truth = nearest(ASKED, 3, TEXTS, *roles)
    assert contents(retriever.retrieve(ASKED)) == truth
    assert contents(await retriever.aretrieve(ASKED)) == truth
    assert [seen.body["role"] for seen in server.received] == ["document", "query", "query"]


async def test_a_query_engine_passes_the_retrieved_texts_to_the_model(server):
    Settings.embed_model, Settings.llm = index_model(server), MockLLM()
    engine = VectorStoreIndex(nodes()).as_query_engine(similarity_top_k=2)
    for answer in (engine.query(ASKED), await engine.aquery(ASKED)):
        assert contents(answer.source_nodes) == nearest(ASKED, 2)
        assert all(text in str(answer) for text in nearest(ASKED, 2))


# Ingestion


def pages(n):
    return [TextNode(text=text, metadata={"page": i}) for i, text in enumerate(numbered(n))]


@pytest.mark.parametrize("run", ["run", "arun", "arun with a worker"])
async def test_an_ingest_with_one_more_node_sends_one_text(server, tmp_path, run):
    options = {"num_workers": 1} if run == "arun with a worker" else {}
    for n in (10, 11):
        pipeline = IngestionPipeline(transformations=[index_model(server, cache=tmp_path)])
        embedded = pipeline.run(nodes=pages(n)) if run == "run" else await pipeline.arun(nodes=pages(n), **options)
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in pages(n)]
        assert [node.embedding for node in embedded] == [vector_of(text).tolist() for text in texts]
    assert [len(request.texts) for request in server.requests] == [10, 1]


def test_the_cache_of_a_pipeline_depends_only_on_what_changes_vectors(server):
    pipeline = IngestionPipeline(transformations=[index_model(server)])
    pipeline.run(nodes=nodes())
    pipeline.transformations = [index_model(server, timeout=5.0, max_concurrency=2)]
    pipeline.run(nodes=nodes())
    assert len(texts_sent(server)) == 20
    pipeline.transformations = [index_model(server, dimensions=64)]
    assert len(pipeline.run(nodes=nodes())[0].embedding) == 64
    assert len(texts_sent(server)) == 40


# Both frameworks in one process


@pytest.mark.parametrize("first", ["LangChain", "LlamaIndex"])
async def test_texts_embedded_by_one_framework_are_cache_hits_for_the_other(server, tmp_path, first):
    embeddings, model = lang(server, cache=tmp_path), index_model(server, cache=tmp_path)
    doors = [
        (embeddings.embed_documents, embeddings.aembed_documents),
        (model.get_text_embedding_batch, model.aget_text_embedding_batch),
    ]
    (pays, apays), (free, afree) = doors if first == "LangChain" else doors[::-1]
    rows = pays(TEXTS)
    assert free(TEXTS) == await afree(TEXTS) == await apays(TEXTS) == rows == [vector_of(t).tolist() for t in TEXTS]
    assert embeddings.embed_query(TEXTS[0]) == model.get_query_embedding(TEXTS[0]) == rows[0]
    assert texts_sent(server) == TEXTS


async def test_concurrent_calls_of_both_frameworks_are_coalesced(server):
    embeddings, model = lang(server), index_model(server)
    server.hold()
    with ThreadPoolExecutor(4) as threads:
        calls = [asyncio.wrap_future(threads.submit(embeddings.embed_documents, TEXTS))]
        await asyncio.to_thread(server.wait_for_requests, 1)
        calls += [asyncio.wrap_future(threads.submit(model.get_text_embedding_batch, TEXTS))]
        calls += [asyncio.create_task(embeddings.aembed_documents(TEXTS))]
        calls += [asyncio.create_task(model.aget_text_embedding_batch(TEXTS))]
        await asyncio.to_thread(wait_until_joined, model.embedder, 80)
        server.release()
        assert await asyncio.gather(*calls) == [[vector_of(text).tolist() for text in TEXTS]] * 4
    assert sorted(texts_sent(server)) == sorted(TEXTS)


async def test_both_frameworks_share_one_concurrency_limit(server):
    """The server holds all requests, so that five are in flight: eight callers have twenty each."""
    bound = {"max_concurrency": 5, "max_batch_texts": 5}
    embeddings, model = lang(server, **bound), index_model(server, **bound)
    embeddings.embed_query("the first request of all goes alone")
    doors = [embeddings.embed_documents, model.get_text_embedding_batch]
    adoors = [embeddings.aembed_documents, model.aget_text_embedding_batch]
    asked = [[f"{caller} {text}" for text in numbered(100)] for caller in range(8)]
    server.hold()
    with ThreadPoolExecutor(4) as threads:
        calls = [asyncio.wrap_future(threads.submit(doors[i % 2], asked[i])) for i in range(4)]
        calls += [asyncio.create_task(adoors[i % 2](asked[i])) for i in range(4, 8)]
        await asyncio.to_thread(server.wait_in_flight, 5)
        server.release()
        rows = await asyncio.gather(*calls)
    assert rows == [[vector_of(text).tolist() for text in texts] for texts in asked]
    assert server.peak_in_flight == 5
    assert max(len(request.texts) for request in server.requests) == 5
    assert sorted(texts_sent(server)[1:]) == sorted(text for texts in asked for text in texts)


def test_both_frameworks_share_one_concurrency_limit_at_a_slow_server():
    with OpenAIServer(latency=0.01) as server:
        bound = {"max_concurrency": 5, "max_batch_texts": 5}
        embeddings, model = lang(server, **bound), index_model(server, **bound)

        def bare(door, adoor, caller):
            texts = [f"{caller} {text}" for text in numbered(50)]
            door(texts[:25])
            asyncio.run(adoor(texts[25:]))

        doors = [(embeddings.embed_documents, embeddings.aembed_documents)]
        doors += [(model.get_text_embedding_batch, model.aget_text_embedding_batch)]
        callers = [threading.Thread(target=bare, args=(*doors[i % 2], i)) for i in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(texts_sent(server)) == 300
        assert 1 < server.peak_in_flight <= 5


async def test_a_query_of_one_framework_is_sent_before_the_ingest_of_the_other(server):
    bound = {"max_concurrency": 1, "max_batch_texts": 5}
    embeddings, model = lang(server, **bound), index_model(server, **bound)
    embeddings.embed_query("the first request of all goes alone")
    server.hold()
    ingest = asyncio.create_task(model.aget_text_embedding_batch(numbered(100)))
    await asyncio.to_thread(server.wait_for_requests, 2)
    query = asyncio.create_task(embeddings.aembed_query(ASKED))
    await asyncio.to_thread(wait_until_joined, model.embedder, 101)
    server.release()
    assert await query == vector_of(ASKED).tolist()
    assert len(await ingest) == 100
    assert server.requests[2].texts == (ASKED,)
