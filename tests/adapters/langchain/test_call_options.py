"""Options of one call of the LangChain adapter, as `OpenAIEmbeddings` accepts them."""

import asyncio

import pytest
from blockbuster import blockbuster_ctx
from support.caches import DictCache
from support.embedders import texts_sent

from embedkit_core import ConfigurationError, EmbedKitError
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


async def test_an_async_call_with_options_does_not_block_the_event_loop(server, tmp_path):
    embeddings = EmbedKitEmbeddings(MODEL, base_url=server.base_url, api_key=server.api_key, cache=tmp_path)
    with blockbuster_ctx():
        for _ in range(2):
            assert len(await embeddings.aembed_query("a", dimensions=3)) == 3
            assert len(await embeddings.aembed_documents(["b"], dimensions=3)) == 1
    assert texts_sent(server) == ["a", "b"]


def test_an_async_call_with_options_without_asyncio_gets_a_clear_error(embeddings):
    with pytest.raises(EmbedKitError, match=r"trio\.to_thread\.run_sync"):
        embeddings.aembed_query("a", dimensions=3).__await__().send(None)


def test_queries_with_options_are_kept_in_memory(server):
    class Counting(DictCache):
        reads = 0

        def get_many(self, keys):
            self.reads += 1
            return super().get_many(keys)

    cache = Counting()
    embeddings = EmbedKitEmbeddings(MODEL, base_url=server.base_url, api_key=server.api_key, cache=cache)
    for _ in range(2):  # sent, then read from the cache
        embeddings.embed_query("a", dimensions=3)
    reads = cache.reads
    assert len(embeddings.embed_query("a", dimensions=3)) == 3
    assert cache.reads == reads
    embeddings.embed_query("a", dimensions=3, cache=DictCache())
    assert texts_sent(server) == ["a", "a"]


def test_truncated_texts_of_calls_with_options_are_logged_once(embeddings, caplog):
    unlimited = embeddings.model_copy(update={"budget_tokens": None})
    for word in ("one ", "two "):
        unlimited.embed_documents([word * 9000], dimensions=3)
    assert len([record for record in caplog.records if "truncated" in record.getMessage()]) == 1
