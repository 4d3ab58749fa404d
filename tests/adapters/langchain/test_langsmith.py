"""LangSmith: an embedding inside of a run is a child run of type "embedding" with its usage."""

import asyncio
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from types import ModuleType

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tracers import LangChainTracer
from langchain_core.vectorstores import InMemoryVectorStore
from langsmith import Client, RunTree, traceable, tracing_context
from support.http import LocalServer, Response

from embedkit_core import ProviderError
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbeddingUsageHandler, EmbedKitEmbeddings

PRICE = Decimal("0.02")
FACT, QUESTION = "A cat purrs when it is content.", "Which animal purrs?"


class LangSmithServer(LocalServer):
    """Accepts runs and keeps them, by id."""

    def __init__(self):
        super().__init__()
        self.runs = {}
        self.bodies = []
        self.refuses = False

    async def answer(self, request, connection):
        if request.method == "GET":
            return Response(200, b"{}")
        if self.refuses:
            return Response(400, b"{}")
        self.bodies.append(request.body)
        if not re.fullmatch(r"/runs(/[\w-]{36})?", request.path):
            return Response(202, b"{}")
        run = json.loads(request.body)
        run_id = run.get("id") or request.path.rpartition("/")[2]
        self.runs[run_id] = self.runs.get(run_id, {}) | {n: v for n, v in run.items() if v is not None} | {"id": run_id}
        return Response(202, b"{}")

    @property
    def embeddings(self):
        return [run for run in self.runs.values() if run["run_type"] == "embedding"]

    def named(self, name):
        return next(run for run in self.runs.values() if run["name"] == name)


@pytest.fixture
def langsmith():
    with LangSmithServer() as server:
        yield server


@pytest.fixture
def client(langsmith):
    client = Client(api_url=langsmith.origin, api_key="unused", auto_batch_tracing=False)
    yield client
    client.close()


@pytest.fixture
def fake():
    return FakeServer(usd_per_million=PRICE)


@pytest.fixture
def embeddings(fake):
    return EmbedKitEmbeddings("fake:model", base_url=fake.url, cache=False)


def rag_chain(embeddings):
    """Return a chain that embeds its question."""
    store = InMemoryVectorStore.from_texts([FACT], embedding=embeddings)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    prompt = ChatPromptTemplate.from_template("Facts: {facts}\n\nQuestion: {question}")
    facts = retriever | (lambda found: found[0].page_content)
    chat = FakeListChatModel(responses=["The cat."])
    return {"facts": facts, "question": RunnablePassthrough()} | prompt | chat | StrOutputParser()


def check_embedding(run, texts=1, tokens=3):
    cost = float(tokens * PRICE / 1_000_000)
    usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens, "input_cost": cost, "total_cost": cost}
    metadata = run["extra"]["metadata"]
    assert metadata["usage_metadata"] == usage
    assert (metadata["ls_provider"], metadata["ls_model_name"]) == ("fake", "model")
    assert (run["outputs"]["texts"], run["outputs"]["sent"], run["outputs"]["cache_hits"]) == (texts, texts, 0)
    assert run["name"] == "EmbedKitEmbeddings"
    assert run["end_time"]
    assert "error" not in run


@pytest.mark.parametrize("is_async", [False, True])
def test_a_rag_chain_has_a_run_of_its_embedding(langsmith, client, embeddings, is_async):
    chain = rag_chain(embeddings)
    assert not langsmith.runs
    with tracing_context(enabled=True, client=client):
        if is_async:
            assert asyncio.run(chain.ainvoke(QUESTION)) == "The cat."
        else:
            assert chain.invoke(QUESTION) == "The cat."
    client.flush()
    (run,) = langsmith.embeddings
    check_embedding(run)
    assert run["inputs"] == {"input_type": "query"}
    assert run["parent_run_id"] in langsmith.runs
    assert run["trace_id"] == langsmith.named("RunnableSequence")["trace_id"]


def test_a_tracer_in_the_callbacks_is_enough(langsmith, client, embeddings):
    rag_chain(embeddings).invoke(QUESTION, config={"callbacks": [LangChainTracer(client=client)]})
    client.flush()
    check_embedding(langsmith.embeddings[0])


def test_the_environment_variables_are_enough(langsmith):
    program = (
        "from langchain_core.runnables import RunnableLambda\n"
        "from langchain_core.tracers.langchain import wait_for_all_tracers\n"
        "from embedkit_core.testing import FakeServer\n"
        "from langchain_embedkit import EmbedKitEmbeddings\n"
        "server = FakeServer()\n"
        "embeddings = EmbedKitEmbeddings('fake:model', base_url=server.url, cache=False)\n"
        "RunnableLambda(embeddings.embed_query).invoke('text')\n"
        "wait_for_all_tracers()"
    )
    settings = {"TRACING": "true", "ENDPOINT": langsmith.origin, "API_KEY": "unused", "DISABLE_RUN_COMPRESSION": "true"}
    environment = os.environ | {f"LANGSMITH_{name}": value for name, value in settings.items()}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    assert any(re.search(rb'"run_type": ?"embedding"', body) for body in langsmith.bodies)


async def test_a_function_traced_without_langchain_has_runs_of_its_embeddings(langsmith, client, embeddings):
    @traceable
    async def ingest():
        embeddings.embed_documents(["one two", "three"])
        return len(await embeddings.aembed_documents(["four", "five six"]))

    with tracing_context(enabled=True, client=client):
        assert await ingest() == 2
    client.flush()
    assert len(langsmith.embeddings) == 2
    for run in langsmith.embeddings:
        check_embedding(run, texts=2)
        assert (run["inputs"], run["parent_run_id"]) == ({"input_type": "document"}, langsmith.named("ingest")["id"])


def test_the_run_has_no_text_and_no_vector(langsmith, client, embeddings):
    with tracing_context(enabled=True, client=client):
        RunnableLambda(lambda _: len(embeddings.embed_documents(["a secret text"]))).invoke("hidden")
    client.flush()
    assert len(langsmith.embeddings) == 1
    assert not [body for body in langsmith.bodies if b"secret" in body]


def test_a_failed_call_is_a_failed_run_with_its_usage(langsmith, client, fake, embeddings):
    text = "a secret" + " text"  # a traceback has lines of source code
    fake.rejected_texts.add(text)
    with tracing_context(enabled=True, client=client), pytest.raises(ProviderError):
        RunnableLambda(lambda _: embeddings.embed_query(text)).invoke("x")
    client.flush()
    (run,) = langsmith.embeddings
    assert "Error" in run["error"]
    assert run["outputs"]["failed"] == 1
    assert not [body for body in langsmith.bodies if b"secret text" in body]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_that_cannot_be_sent_does_not_fail_the_call(langsmith, embeddings, caplog, is_async):
    client = Client(api_url=langsmith.origin, api_key="sk-secret", auto_batch_tracing=False)
    langsmith.refuses = True
    with tracing_context(enabled=True, client=client, parent=RunTree(name="parent", client=client)):
        vector = asyncio.run(embeddings.aembed_query("text")) if is_async else embeddings.embed_query("text")
    client.close()
    assert len(vector) == 8
    (record,) = [record for record in caplog.records if record.name == "langchain_embedkit"]
    assert record.getMessage() == "LangSmith run of fake:model was not sent: LangSmithError"


def test_a_run_that_cannot_be_created_does_not_fail_the_call(langsmith, client, embeddings, caplog):
    class Broken(RunTree):
        def create_child(self, *arguments, **options):
            raise TypeError

    with tracing_context(enabled=True, client=client, parent=Broken(name="parent", client=client)):
        assert len(embeddings.embed_query("text")) == 8
    (record,) = [record for record in caplog.records if record.name == "langchain_embedkit"]
    assert record.getMessage() == "LangSmith run of fake:model was not created: TypeError"


def test_an_embedding_while_another_thread_imports_langsmith_is_not_traced(langsmith, embeddings, monkeypatch):
    monkeypatch.setitem(sys.modules, "langsmith.run_helpers", ModuleType("langsmith.run_helpers"))
    assert len(embeddings.embed_query("text")) == 8


def test_an_embedding_outside_of_a_run_is_not_traced(langsmith, client, embeddings):
    with tracing_context(enabled=True, client=client):
        embeddings.embed_query("text")
    client.flush()
    assert not langsmith.runs


def test_a_disabled_trace_gets_no_run_and_handlers_still_count(langsmith, client, embeddings):
    handler = EmbeddingUsageHandler()
    with tracing_context(enabled=False, client=client):
        RunnableLambda(embeddings.embed_query).invoke("text", config={"callbacks": [handler]})
    client.flush()
    assert not langsmith.runs
    assert handler.usage.texts == 1


def test_embedding_does_not_import_langsmith_itself():
    program = (
        "import sys\n"
        "from embedkit_core.testing import FakeServer\n"
        "from langchain_embedkit import EmbedKitEmbeddings\n"
        "server = FakeServer()\n"
        "before = set(sys.modules)\n"
        "EmbedKitEmbeddings('fake:model', base_url=server.url, cache=False).embed_query('text')\n"
        "print([name for name in set(sys.modules) - before if name.startswith('langsmith')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
