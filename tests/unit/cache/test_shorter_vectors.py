"""Fewer dimensions from a longer cached vector: no request, no cost, and equal numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import MINILM, long_text, needs_local_model, numbered, openai_embedder
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import BadReplyError, ConfigurationError, Embedder, Usage
from embedkit_core.adapters.base import aembed_lists, embed_lists

TEXTS = numbered(6)
LARGE = "text-embedding-3-large"


def expected(texts, dimensions):
    return np.stack([vector_of(text, dimensions) for text in texts])


def test_a_cached_vector_of_1536_serves_256_without_request_or_cost(server, tmp_path):
    openai_embedder(server, cache=tmp_path).embed(TEXTS)
    short = openai_embedder(server, dimensions=256, cache=tmp_path)
    result = short.embed([*TEXTS, TEXTS[0]])
    assert result.usage == Usage(texts=7, cache_hits=6, duplicates=1)
    assert result.usage.cost_usd == 0
    np.testing.assert_allclose(result.vectors, expected([*TEXTS, TEXTS[0]], 256), atol=1e-6)
    assert len(server.requests) == 1


def test_a_query_is_served_from_a_longer_vector_and_then_from_memory(server, tmp_path):
    openai_embedder(server, cache=tmp_path).embed(TEXTS)
    short = openai_embedder(server, dimensions=256, cache=tmp_path)
    assert short.explain(TEXTS[0], input_type="query").served_from == "cache"
    first = short.embed_query(TEXTS[0])
    assert short.explain(TEXTS[0], input_type="query").served_from == "memory"
    assert np.array_equal(short.embed_query(TEXTS[0]), first)
    np.testing.assert_allclose(first, vector_of(TEXTS[0], 256), atol=1e-6)
    assert len(server.requests) == 1


async def test_frameworks_get_lists_cut_from_a_longer_vector(server, tmp_path):
    openai_embedder(server, cache=tmp_path).embed(TEXTS)
    short = openai_embedder(server, dimensions=256, cache=tmp_path)
    for made in (embed_lists(short, TEXTS), await aembed_lists(short, TEXTS)):
        np.testing.assert_allclose(np.array(made.rows), expected(TEXTS, 256), atol=1e-6)
        assert made.usage == Usage(texts=6, cache_hits=6)
    assert len(server.requests) == 1


def test_only_texts_without_a_longer_cached_vector_are_sent(server, tmp_path):
    openai_embedder(server, cache=tmp_path).embed(TEXTS[:3])
    openai_embedder(server, dimensions=512, cache=tmp_path).embed(TEXTS[2:5])
    result = openai_embedder(server, dimensions=256, cache=tmp_path).embed(TEXTS)
    assert (result.usage.cache_hits, result.usage.sent) == (5, 1)
    assert server.requests[-1].texts == (TEXTS[5],)
    assert server.requests[-1].body["dimensions"] == 256
    np.testing.assert_allclose(result.vectors, expected(TEXTS, 256), atol=1e-6)


def test_a_shorter_vector_never_serves_more_dimensions(server, tmp_path):
    openai_embedder(server, dimensions=256, cache=tmp_path).embed(TEXTS)
    assert openai_embedder(server, dimensions=512, cache=tmp_path).embed(TEXTS).usage.sent == 6
    assert openai_embedder(server, cache=tmp_path).embed(TEXTS).usage.sent == 6


def test_the_exact_vector_takes_precedence_over_a_longer_one(server, tmp_path):
    exact = openai_embedder(server, dimensions=256, cache=tmp_path).embed(TEXTS)
    openai_embedder(server, cache=tmp_path).embed(TEXTS)
    again = openai_embedder(server, dimensions=256, cache=tmp_path).embed(TEXTS)
    assert np.array_equal(again.vectors, exact.vectors)


def test_a_request_asks_for_the_configured_dimensions(server):
    openai_embedder(server, dimensions=256).embed(TEXTS)
    assert server.requests[0].body["dimensions"] == 256


def test_a_mean_vector_is_not_cut_to_fewer_dimensions(tmp_path):
    with OpenAIServer(max_tokens_per_text=20) as server:
        texts = [long_text(50)]
        openai_embedder(server, on_long_text="mean", cache=tmp_path).embed(texts)
        assert openai_embedder(server, on_long_text="mean", dimensions=256, cache=tmp_path).embed(texts).usage.sent == 1


def test_a_truncated_text_is_also_listed_if_a_longer_vector_serves_it(tmp_path):
    with OpenAIServer(max_tokens_per_text=20) as server:
        texts = ["short", long_text(50)]
        openai_embedder(server, cache=tmp_path).embed(texts)
        result = openai_embedder(server, dimensions=256, cache=tmp_path).embed(texts)
    assert result.truncated == (1,)
    assert result.usage.requests == 0


@pytest.mark.parametrize(
    "other",
    [
        {"model": LARGE},
        {"on_long_text": "error"},
        {"document_prompt": "passage: "},
        {"provider_options": {"user": "another"}},
    ],
    ids=str,
)
def test_a_longer_vector_with_other_settings_is_not_used(server, tmp_path, other):
    openai_embedder(server, cache=tmp_path).embed(TEXTS)
    assert openai_embedder(server, dimensions=256, cache=tmp_path, **other).embed(TEXTS).usage.cache_hits == 0


def test_vectors_of_a_model_without_shorter_dimensions_are_not_cut(server):
    with pytest.raises(ConfigurationError, match="it offers 1536"):
        openai_embedder(server, "text-embedding-ada-002", dimensions=256)


@needs_local_model
@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_rows_are_centered_once_for_every_cached_width(dtype, tmp_path):
    """Nomic's models center the whole row before it is cut; a longer cached row is already centered."""
    info = {"dimensions": 384, "allowed_dimensions": [64, 128, 256, 384], "cut": "centered"}

    def made(**options):
        return Embedder(MINILM, model_info=info, **options)

    direct = made(dimensions=64, dtype=dtype, cache=False).embed(TEXTS).vectors
    for kept in (128, 384):
        folder = tmp_path / str(kept)
        made(dimensions=kept, cache=folder).embed(TEXTS)
        from_longer = made(dimensions=64, dtype=dtype, cache=folder).embed(TEXTS)
        assert from_longer.usage.sent == 0
        np.testing.assert_allclose(from_longer.vectors, direct, atol=1e-6 if dtype == "float32" else 1e-3)


async def test_async_callers_get_packed_bits_of_a_longer_vector(server, tmp_path):
    openai_embedder(server, dimensions=1024, cache=tmp_path).embed(TEXTS)
    row = await openai_embedder(server, dimensions=256, dtype="ubinary", cache=tmp_path).aembed_query(TEXTS[0])
    assert np.array_equal(row, np.packbits(vector_of(TEXTS[0], 256) > 0))
    assert len(server.requests) == 1


# Servers that ignore dimensions


def test_replies_of_a_gateway_that_ignores_dimensions_are_cut_locally(tmp_path):
    with OpenAIServer(ignores_dimensions=True) as server:
        first = openai_embedder(server, dimensions=256, cache=tmp_path).embed(TEXTS)
        again = openai_embedder(server, dimensions=256, cache=tmp_path).embed(TEXTS)
    assert server.requests[0].body["dimensions"] == 256
    assert again.usage.requests == 0
    np.testing.assert_allclose(first.vectors, expected(TEXTS, 256), atol=1e-6)
    assert np.array_equal(again.vectors, first.vectors)


def test_an_unknown_model_is_refused_if_its_server_ignores_dimensions():
    with OpenAIServer(ignores_dimensions=True) as server, pytest.raises(BadReplyError, match=r"1536 .* instead of 256"):
        openai_embedder(server, "an-unknown-model", dimensions=256).embed(TEXTS)


# All together


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, 256, 512, 1024]), st.sets(st.integers(0, 5), min_size=1)), max_size=6))
def test_every_row_is_that_of_its_text_in_the_configured_dimensions(tmp_path_factory, calls):
    folder = tmp_path_factory.mktemp("cache")
    seen: dict[int, list[int]] = {}
    with OpenAIServer() as server:
        for dimensions, chosen in calls:
            texts = [TEXTS[n] for n in sorted(chosen)]
            result = openai_embedder(server, dimensions=dimensions, cache=folder).embed(texts)
            width = dimensions or 1536
            np.testing.assert_allclose(result.vectors, expected(texts, width), atol=1e-6)
            fresh = [n for n in chosen if not any(w >= width for w in seen.get(n, []))]
            assert result.usage.sent == len(fresh)
            for n in chosen:
                seen.setdefault(n, []).append(width if n in fresh else 0)
