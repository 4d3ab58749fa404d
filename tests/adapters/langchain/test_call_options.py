"""Options of one call of the LangChain adapter, as `OpenAIEmbeddings` accepts them."""

import asyncio

import pytest
from support.embedders import texts_sent

from embedkit_core import ConfigurationError
from langchain_embedkit import EmbedKitEmbeddings

MODEL = "openai:text-embedding-3-small"


@pytest.fixture
def embeddings(server):
    return EmbedKitEmbeddings(MODEL, base_url=server.base_url, api_key=server.api_key, cache=False, budget_tokens=100)


def test_the_dimensions_of_one_call_are_taken(server, embeddings):
    assert [len(row) for row in embeddings.embed_documents(["a", "b"], dimensions=3)] == [3, 3]
    assert len(embeddings.embed_query("a", dimensions=4)) == 4
    assert [len(row) for row in asyncio.run(embeddings.aembed_documents(["c"], dimensions=5))] == [5]
    assert len(asyncio.run(embeddings.aembed_query("c", dimensions=6))) == 6
    assert [request.body["dimensions"] for request in server.requests] == [3, 4, 5, 6]
    assert len(embeddings.embed_query("d")) == 1536


def test_a_call_with_options_counts_in_the_usage_and_the_budget_of_the_object(embeddings):
    embeddings.embed_documents(["one two", "three"], dimensions=3)
    assert (embeddings.usage.sent, embeddings.usage.tokens) == (2, 3)
    assert embeddings.embedder.budget.spent_tokens == 3


def test_options_in_the_spelling_of_another_class_are_taken(server, embeddings):
    assert len(embeddings.embed_documents(["a"], output_dimension=3, encoding_format="float")[0]) == 3
    embeddings.embed_documents(["b"], chunk_size=1, request_timeout=5.0)
    assert texts_sent(server) == ["a", "b"]


def test_an_option_that_cannot_be_set_for_a_call_is_refused_with_the_way_to_set_it(server, embeddings):
    refused = {
        "user": r"user= is not supported\. Set provider_options=\{'user': \.\.\.\} when you create the object",
        "extra_body": r"extra_body= is not supported\. Set provider_options= when you create the object",
        "extra_headers": r"extra_headers= is not supported\. Set headers= when you create the object",
        "dimensons": r"no argument 'dimensons'; did you mean 'dimensions'\?",
    }
    for name, message in refused.items():
        with pytest.raises(ConfigurationError, match=f"^embed_documents.*{message}"):
            embeddings.embed_documents(["a"], **{name: {"x": "sk-secret"}})
    assert not server.requests


def test_an_invalid_option_is_named_as_it_was_given(embeddings):
    with pytest.raises(ConfigurationError, match=r"^output_dimension \(dimensions\): .* does not offer 9999"):
        embeddings.embed_query("a", output_dimension=9999)
    with pytest.raises(ConfigurationError, match=r"^chunk_size \(max_batch_texts\): must be an integer of at least 1"):
        embeddings.embed_documents(["a"], chunk_size=-1)


def test_chunk_size_zero_of_a_call_is_the_default_as_in_the_replaced_class(server, embeddings):
    embeddings.embed_documents(["a", "b"], chunk_size=0)
    assert len(server.requests) == 1
