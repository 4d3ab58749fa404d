"""LangChain applications: vector stores, retrievers, chains, indexing and LangGraph's store."""

import uuid
import warnings
from typing import TypedDict

import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.language_models import SimpleChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import BaseStore, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore
from support.embedders import numbered, texts_sent
from support.openai_server import vector_of

from embedkit_core.testing import FakeServer, fake_vector
from langchain_embedkit import EmbedKitEmbeddings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".langchain-community. is being sunset", DeprecationWarning)  # FAISS lives there
    from langchain_community.vectorstores import FAISS

STORES = {
    "memory": (InMemoryVectorStore, dict),
    "chroma": (Chroma, lambda: {"collection_name": f"c{uuid.uuid4().hex}"}),
    "faiss": (FAISS, dict),
}
stores = pytest.mark.parametrize("store", STORES)
TEXTS = numbered(20)
ASKED = "which of them?"


def lang(server, **options):
    given = {"model": "openai:text-embedding-3-small", "base_url": server.base_url, "api_key": "test-key"}
    return EmbedKitEmbeddings(**{**given, "cache": False, **options})


def asymmetric(server):
    return EmbedKitEmbeddings(model="fake:any", base_url=server.url, cache=False)


def built(store, embeddings, texts=TEXTS):
    kind, options = STORES[store]
    return kind.from_texts(texts, embeddings, **options())


async def abuilt(store, embeddings, texts=TEXTS):
    kind, options = STORES[store]
    return await kind.afrom_texts(texts, embeddings, **options())


def nearest(asked, k, texts=TEXTS, vector=vector_of, query_vector=vector_of):
    """Return the texts in the expected order."""
    scores = [float(vector(text) @ query_vector(asked)) for text in texts]
    return [texts[i] for i in np.argsort(scores)[::-1][:k]]


def contents(found):
    return [document.page_content for document in found]


# Vector stores


@stores
async def test_a_store_ranks_by_the_servers_vectors(server, store):
    sync_store, async_store = built(store, lang(server)), await abuilt(store, lang(server))
    for asked in (ASKED, *TEXTS[:3]):
        assert contents(sync_store.similarity_search(asked, k=5)) == nearest(asked, 5)
        assert contents(await async_store.asimilarity_search(asked, k=5)) == nearest(asked, 5)


@stores
def test_a_store_sends_each_distinct_text_of_a_call_once(server, store):
    built(store, lang(server), [*TEXTS, *TEXTS]).add_texts([*TEXTS[:5], "new"])
    sent = texts_sent(server)
    assert sorted(sent) == sorted([*TEXTS, *TEXTS[:5], "new"])  # without a cache, calls share nothing


@stores
async def test_a_rebuilt_store_sends_nothing(server, tmp_path, store):
    built(store, lang(server, cache=tmp_path), [*TEXTS, *TEXTS]).similarity_search(ASKED)
    assert sorted(texts_sent(server)) == sorted([*TEXTS, ASKED])
    again = lang(server, cache=tmp_path)
    assert contents(built(store, again).similarity_search(ASKED, k=3)) == nearest(ASKED, 3)
    assert contents(await (await abuilt(store, again)).asimilarity_search(ASKED, k=3)) == nearest(ASKED, 3)
    assert (again.usage.sent, again.usage.cache_hits) == (0, 42)


def in_role(role):
    return lambda text: fake_vector(text, role=role, model="any")


@stores
@pytest.mark.parametrize("search_type", ["similarity", "mmr"])
async def test_a_store_embeds_queries_as_queries(store, search_type):
    server = FakeServer()
    options = {"k": 3} | ({"lambda_mult": 1.0} if search_type == "mmr" else {})
    retriever = built(store, asymmetric(server)).as_retriever(search_type=search_type, search_kwargs=options)
    truth = nearest(ASKED, 3, vector=in_role("document"), query_vector=in_role("query"))
    assert contents(retriever.invoke(ASKED)) == truth
    assert contents(await retriever.ainvoke(ASKED)) == truth
    roles = {(seen.body["role"], text) for seen in server.received for text in seen.texts}
    assert roles == {*(("document", text) for text in TEXTS), ("query", ASKED)}


# Retrievers and chains


@stores
async def test_a_retriever_answers_one_and_many_sync_and_async(server, store):
    retriever = built(store, lang(server)).as_retriever(search_kwargs={"k": 2})
    asked = [f"question {i}" for i in range(12)]
    truth = [nearest(question, 2) for question in asked]
    assert contents(retriever.invoke(asked[0])) == truth[0]
    assert contents(await retriever.ainvoke(asked[0])) == truth[0]
    assert list(map(contents, retriever.batch(asked))) == truth
    assert list(map(contents, await retriever.abatch(asked))) == truth


@stores
def test_a_marginal_relevance_of_one_is_the_similarity(server, store):
    options = {"k": 4, "fetch_k": 20, "lambda_mult": 1.0}
    retriever = built(store, lang(server)).as_retriever(search_type="mmr", search_kwargs=options)
    assert contents(retriever.invoke(ASKED)) == nearest(ASKED, 4)


async def test_concurrent_queries_share_requests(server):
    retriever = InMemoryVectorStore(lang(server)).as_retriever()
    await retriever.abatch([f"question {i}" for i in range(100)])
    assert sum(len(request.texts) for request in server.requests) == 100
    assert len(server.requests) < 50


class Repeating(SimpleChatModel):
    """A chat model that repeats the last message."""

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        return messages[-1].content

    @property
    def _llm_type(self):
        return "repeating"


@stores
async def test_a_chain_passes_the_retrieved_texts_to_the_model(server, store):
    retriever = built(store, lang(server)).as_retriever(search_kwargs={"k": 2})
    prompt = ChatPromptTemplate.from_template("{facts} || {question}")
    facts = retriever | (lambda found: " | ".join(contents(found)))
    chain = {"facts": facts, "question": RunnablePassthrough()} | prompt | Repeating() | StrOutputParser()

    def told(question):
        return f"{' | '.join(nearest(question, 2))} || {question}"

    assert chain.invoke(ASKED) == told(ASKED)
    assert await chain.ainvoke(ASKED) == told(ASKED)
    assert chain.batch(["one?", "two?"]) == [told("one?"), told("two?")]
    assert "".join([piece async for piece in chain.astream("three?")]) == told("three?")


# Indexing


def documents(n):
    return [Document(text, metadata={"source": text}) for text in numbered(n)]


async def test_an_index_without_its_records_sends_only_new_texts(server, tmp_path):
    for n, expected in ((10, 10), (11, 11)):
        records, store = InMemoryRecordManager("test"), InMemoryVectorStore(lang(server, cache=tmp_path))
        records.create_schema()
        done = index(documents(n), records, store, cleanup="full", source_id_key="source", key_encoder="sha256")
        assert done["num_added"] == n
        assert len(texts_sent(server)) == expected
    records, store = InMemoryRecordManager("test"), InMemoryVectorStore(lang(server, cache=tmp_path))
    await records.acreate_schema()
    await aindex(documents(12), records, store, cleanup="full", source_id_key="source", key_encoder="sha256")
    assert len(texts_sent(server)) == 12
    assert contents(await store.asimilarity_search(ASKED, k=3)) == nearest(ASKED, 3, numbered(12))


# LangGraph's store


def memories(embeddings, **index_options):
    return InMemoryStore(index={"embed": embeddings, "dims": 1536, "fields": ["text"], **index_options})


def found_in(results):
    return [item.value["text"] for item in results]


def test_a_langgraph_store_embeds_one_field_and_ranks_by_the_servers_vectors(server):
    store = memories(lang(server))
    for key, text in enumerate(TEXTS):
        store.put(("m",), str(key), {"text": text, "not embedded": "x"})
    results = store.search(("m",), query=ASKED, limit=5)
    assert found_in(results) == nearest(ASKED, 5)
    assert results[0].score == pytest.approx(float(vector_of(ASKED) @ vector_of(found_in(results)[0])), abs=1e-5)
    assert texts_sent(server) == [*TEXTS, ASKED]


async def test_a_langgraph_store_sends_an_async_batch_in_few_requests(server):
    store = memories(lang(server))
    await store.abatch([PutOp(("m",), str(key), {"text": text}) for key, text in enumerate(TEXTS)])
    assert len(server.requests) == 1
    assert found_in(await store.asearch(("m",), query=ASKED, limit=5)) == nearest(ASKED, 5)
    questions = [f"question {i}" for i in range(30)]
    answers = await store.abatch([SearchOp(("m",), query=question, limit=2) for question in questions])
    assert list(map(found_in, answers)) == [nearest(question, 2) for question in questions]
    assert len(server.requests) < 20


async def test_a_langgraph_store_may_be_called_synchronously_while_a_loop_runs(server):
    store = memories(lang(server))
    store.put(("m",), "a", {"text": "a"})
    assert found_in(store.search(("m",), query="a")) == ["a"]


@pytest.mark.parametrize("use_async", [False, True])
async def test_a_langgraph_store_embeds_queries_as_queries(use_async):
    server = FakeServer()
    store = memories(asymmetric(server), dims=8)
    assert isinstance(store.embeddings, EmbedKitEmbeddings)
    if use_async:
        await store.aput(("m",), "x", {"text": "x"})
        await store.asearch(("m",), query="x")
    else:
        store.put(("m",), "x", {"text": "x"})
        store.search(("m",), query="x")
    assert [seen.body["role"] for seen in server.received] == ["document", "query"]


async def test_a_langgraph_store_with_a_bare_function_embeds_queries_as_documents():
    """LangGraph embeds queries with the function it gets: pass the object, as docs/recipes.md does."""
    server = FakeServer()
    store = memories(asymmetric(server).embed_documents, dims=8)
    await store.aput(("m",), "x", {"text": "x"})
    await store.asearch(("m",), query="y")
    assert [seen.body["role"] for seen in server.received] == ["document", "document"]


class State(TypedDict):
    asked: str
    found: list[str]


@pytest.mark.parametrize("use_async", [False, True])
async def test_a_graph_node_searches_the_store(server, use_async):
    def recall(state: State, *, store: BaseStore):
        return {"found": found_in(store.search(("m",), query=state["asked"], limit=2))}

    async def arecall(state: State, *, store: BaseStore):
        return {"found": found_in(await store.asearch(("m",), query=state["asked"], limit=2))}

    store = memories(lang(server))
    store.batch([PutOp(("m",), str(key), {"text": text}) for key, text in enumerate(TEXTS)])
    builder = StateGraph(State)
    builder.add_node("recall", arecall if use_async else recall)
    builder.add_edge(START, "recall")
    builder.add_edge("recall", END)
    graph = builder.compile(store=store)
    asked = {"asked": ASKED, "found": []}
    answer = await graph.ainvoke(asked) if use_async else graph.invoke(asked)
    assert answer["found"] == nearest(ASKED, 2)
