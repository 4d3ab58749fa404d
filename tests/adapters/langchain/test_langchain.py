"""The LangChain class: LangChain's own suites, methods, copies, and the cache shared with LlamaIndex."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from support.embedders import MINILM, needs_local_model, numbered, openai_embedder, texts_sent
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import AuthenticationError, Embedder
from embedkit_core.testing import FakeServer, fake_vector
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

OPENAI = "openai:text-embedding-3-small"
FACTS = [
    "The cat sat on the mat and purred.",
    "Interest rates rose by a quarter point.",
    "Photosynthesis turns light into sugar.",
]


@pytest.fixture(scope="module", autouse=True)
def suite_server():
    with OpenAIServer() as running:
        Served.server = running
        yield


class Served:
    """A model at the local server."""

    server: OpenAIServer

    @property
    def embeddings_class(self):
        return EmbedKitEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": OPENAI, "base_url": self.server.base_url, "api_key": "test-key", "cache": False}


class Local:
    """A local model."""

    @property
    def embeddings_class(self):
        return EmbedKitEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": MINILM, "cache": False}


class TestServedUnit(Served, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self):
        found = {"OPENAI_API_KEY": "test-key", "OPENAI_BASE_URL": self.server.base_url}
        given = {"model": OPENAI, "cache": False}
        return found, given, {"model": OPENAI, "api_key": "test-key"}


class TestServedIntegration(Served, EmbeddingsIntegrationTests):
    pass


@needs_local_model
class TestLocalUnit(Local, EmbeddingsUnitTests):
    pass


@needs_local_model
class TestLocalIntegration(Local, EmbeddingsIntegrationTests):
    pass


def lang(server, **options):
    return EmbedKitEmbeddings(
        **{"model": OPENAI, "base_url": server.base_url, "api_key": "test-key", "cache": False, **options}
    )


@pytest.fixture(params=["served", pytest.param("local", marks=needs_local_model)])
def embeddings(request, server):
    return lang(server) if request.param == "served" else EmbedKitEmbeddings(model=MINILM, cache=False)


async def test_every_value_is_a_python_float_and_the_vectors_are_json(embeddings):
    rows = [
        *embeddings.embed_documents(["a", "b"]),
        *await embeddings.aembed_documents(["a", "b"]),
        embeddings.embed_query("a"),
        await embeddings.aembed_query("a"),
    ]
    assert {type(number) for row in rows for number in row} == {float}
    assert json.loads(json.dumps(rows)) == rows
    assert len({len(row) for row in rows}) == 1


async def test_all_four_methods_return_the_servers_vectors(server):
    embeddings = lang(server)
    truth = [vector_of(text).tolist() for text in ("a", "b")]
    assert embeddings.embed_documents(["a", "b"]) == truth
    assert await embeddings.aembed_documents(["a", "b"]) == truth
    assert embeddings.embed_query("a") == truth[0]
    assert await embeddings.aembed_query("b") == truth[1]


async def test_a_list_is_one_call_of_the_core_and_an_empty_list_sends_nothing(server):
    """If the list were split, copies of a text in different parts would not count as duplicates."""
    embeddings = lang(server)
    embeddings.embed_documents([*numbered(25), *["again"] * 3000])
    assert len(server.requests) == 1
    assert (embeddings.usage.texts, embeddings.usage.sent, embeddings.usage.duplicates) == (3025, 26, 2999)
    await embeddings.aembed_documents(["later", *["later"] * 3000])
    assert (len(server.requests), embeddings.usage.duplicates) == (2, 5999)
    assert embeddings.embed_documents([]) == await embeddings.aembed_documents([]) == []
    assert len(server.requests) == 2


async def test_a_vector_store_finds_the_right_text(embeddings):
    store, async_store = InMemoryVectorStore(embeddings), InMemoryVectorStore(embeddings)
    store.add_texts(FACTS)
    await async_store.aadd_texts(FACTS)
    first = "Where is the kitten?" if embeddings.model == MINILM else FACTS[0]
    last = "What do leaves do with the sun?" if embeddings.model == MINILM else FACTS[2]
    assert [found.page_content for found in store.similarity_search(first, k=1)] == FACTS[:1]
    assert [found.page_content for found in await async_store.asimilarity_search(last, k=1)] == FACTS[2:]


def test_the_key_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    EmbedKitEmbeddings(model=OPENAI, base_url=server.base_url, cache=False).embed_query("a")
    assert server.requests[0].headers["authorization"] == "Bearer test-key"
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(AuthenticationError):
        EmbedKitEmbeddings(model=OPENAI, base_url=server.base_url, cache=False).embed_query("b")


# Both frameworks

ASKED = """
import sys
from llamaindex_embedkit import EmbedKitEmbedding
model = EmbedKitEmbedding(model="openai:text-embedding-3-small", base_url=sys.argv[1], cache=sys.argv[2])
model.get_text_embedding_batch([f"text {i}" for i in range(20)])
model.get_query_embedding("text 7")
print(model.usage.cache_hits, model.usage.requests)
"""


def test_llamaindex_in_another_process_hits_the_cache_that_langchain_filled(server, tmp_path):
    lang(server, cache=tmp_path).embed_documents([f"text {i}" for i in range(20)])
    command = [sys.executable, "-c", ASKED, server.base_url, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (other.stdout.split(), other.stderr) == (["21", "0"], "")
    assert len(server.requests) == 1


@pytest.mark.parametrize("first", ["query", "document"])
async def test_a_document_vector_is_never_returned_for_a_query(first, tmp_path):
    server = FakeServer()
    options = {"model": "fake:any", "base_url": server.url, "cache": tmp_path}
    lang, index = EmbedKitEmbeddings(**options), EmbedKitEmbedding(**options)
    document, query = (fake_vector("x", role=role, model="any").tolist() for role in ("document", "query"))
    calls = [(lambda: lang.embed_documents(["x"])[0], document), (lambda: index.get_query_embedding("x"), query)]
    for call, row in calls if first == "document" else calls[::-1]:
        assert call() == row
    assert (index.get_text_embedding("x"), lang.embed_query("x")) == (document, query)
    assert (await index.aget_text_embedding("x"), await lang.aembed_query("x")) == (document, query)
    assert document != query
    assert {seen.body["role"] for seen in server.received} == {"query", "document"}
    assert len(server.received) == 2


def test_a_query_of_a_symmetric_model_hits_the_document_entry_of_the_other_framework(server, tmp_path):
    index = EmbedKitEmbedding(model=OPENAI, base_url=server.base_url, api_key="test-key", cache=tmp_path)
    embeddings, core = lang(server, cache=tmp_path), openai_embedder(server, OPENAI, cache=tmp_path)
    rows = [embeddings.embed_documents(["x"])[0], embeddings.embed_query("x"), core.embed_query("x").tolist()]
    rows += [index.get_query_embedding("x"), index.get_text_embedding("x")]
    assert rows == [vector_of("x").tolist()] * 5
    assert texts_sent(server) == ["x"]


CHANGES = [
    {"dimensions": 64}, {"model": "openai:text-embedding-ada-002"}, {"document_prompt": "d: "},
    {"on_long_text": "mean"}, {"provider_options": {"user": "u"}},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_each_changed_argument_has_its_own_cache_entries(framework_class, server, tmp_path, change):
    options = {"model": OPENAI, "base_url": server.base_url, "api_key": "test-key", "cache": tmp_path}
    models = [framework_class(**options), framework_class(**options | change)]
    rows = [model.embedder.embed_documents(["x"])[0].tolist() for model in [*models, *models]]
    prompt, width = change.get("document_prompt", ""), change.get("dimensions", 1536)
    name = models[1].embedder.provider.model
    assert rows[0] == rows[2] == vector_of("x").tolist()
    assert rows[1] == rows[3] == vector_of(prompt + "x", width, model=name).tolist()
    assert len(server.requests) == (1 if "dimensions" in change else 2)  # truncated from the cached vector


def test_each_server_has_its_own_cache_entries(framework_class, server, tmp_path):
    with OpenAIServer() as another:
        for at in (server, another, server, another):
            framework_class(model=OPENAI, base_url=at.base_url, api_key="test-key", cache=tmp_path).embedder.embed(
                ["x"]
            )
        assert (len(server.requests), len(another.requests)) == (1, 1)


def test_a_pickle_has_the_same_configuration_and_cache(framework_class, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    options = {"dimensions": 64, "document_prompt": "d: ", "max_concurrency": 3, "provider_options": {"user": "u"}}
    original = framework_class(model=OPENAI, base_url=server.base_url, cache=tmp_path, **options)
    row = original.embedder.embed_query("a")
    other = pickle.loads(pickle.dumps(original))
    assert other.model_dump() == original.model_dump()
    assert (other.cache, other.embedder.settings) == (tmp_path, original.embedder.settings)
    assert other.embedder.explain("a") == original.embedder.explain("a")
    assert other.embedder.embed_query("a").tolist() == row.tolist()
    assert len(server.requests) == 1
    other.embedder.embed_query("b")
    assert server.requests[-1].status == 200


def test_a_deep_copy_keeps_configuration_and_key(framework_class, server):
    original = framework_class(model=OPENAI, base_url=server.base_url, api_key="test-key", cache=False, dimensions=64)
    other = copy.deepcopy(original)
    assert other.model_dump() == original.model_dump()
    assert other.embedder.embed_query("a").tolist() == vector_of("a", 64).tolist()
    assert server.requests[0].headers["authorization"] == "Bearer test-key"


def test_a_deep_copied_embedder_keeps_its_key(server):
    other = copy.deepcopy(openai_embedder(server, OPENAI))
    assert isinstance(other, Embedder)
    other.embed_query("a")
    assert server.requests[0].headers["authorization"] == "Bearer test-key"
