"""Voyage AI through LangChain's own suites and through both frameworks."""

import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from support.voyage_server import VoyageServer, to_dtype, voyage_vector

from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MODEL = "voyage:voyage-4"


@pytest.fixture(scope="module", autouse=True)
def suite_server():
    with VoyageServer() as running:
        Served.server = running
        yield


@pytest.fixture
def server():
    with VoyageServer() as running:
        yield running


class Served:
    server: VoyageServer

    @property
    def embeddings_class(self):
        return EmbedKitEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": MODEL, "base_url": self.server.base_url, "api_key": "test-key", "cache": False}


class TestVoyageUnit(Served, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self):
        return {"VOYAGE_API_KEY": "test-key"}, {"model": MODEL, "cache": False}, {"model": MODEL, "api_key": "test-key"}


class TestVoyageIntegration(Served, EmbeddingsIntegrationTests):
    pass


async def test_all_methods_distinguish_queries_and_documents(server):
    options = {"model": MODEL, "base_url": server.base_url, "api_key": "test-key", "cache": False}
    lang, index = EmbedKitEmbeddings(**options), EmbedKitEmbedding(**options)
    document, query = voyage_vector("x").tolist(), voyage_vector("x", "query").tolist()
    assert [lang.embed_documents(["x"])[0], (await lang.aembed_documents(["x"]))[0]] == [document] * 2
    assert [index.get_text_embedding("x"), index.get_text_embedding_batch(["x"])[0]] == [document] * 2
    assert [lang.embed_query("x"), await lang.aembed_query("x"), index.get_query_embedding("x")] == [query] * 3
    assert {type(number) for number in (*lang.embed_query("x"), *index.get_query_embedding("x"))} == {float}


@pytest.mark.parametrize("host", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_voyages_integer_dtypes_are_python_floats_in_both_frameworks(server, host):
    made = host(model=MODEL, base_url=server.base_url, api_key="test-key", cache=False, dtype="int8", dimensions=256)
    row = made.embed_query("x") if host is EmbedKitEmbeddings else made.get_query_embedding("x")
    assert row == to_dtype(voyage_vector("x", "query", 256), "int8").tolist()
    assert {type(number) for number in row} == {float}


def test_a_rebuilt_voyage_store_is_billed_once(server, tmp_path):
    options = {"model": MODEL, "base_url": server.base_url, "api_key": "test-key", "cache": tmp_path}
    facts = [f"fact {i}" for i in range(20)]
    for _ in range(2):
        store = InMemoryVectorStore(EmbedKitEmbeddings(**options))
        store.add_texts(facts)
    assert set(server.billed_texts.values()) == {1}
    assert len(store.similarity_search("fact 3", k=4)) == 4
    assert server.requests[-1].body["input_type"] == "query"
