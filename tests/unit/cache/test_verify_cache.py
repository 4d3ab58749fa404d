"""verify_cache compares cached vectors with those that the model returns now."""

import numpy as np
import pytest
from support.embedders import numbered, openai_embedder
from support.openai_server import OpenAIServer, vector_of
from support.voyage_server import VoyageServer

from embedkit_core import ConfigurationError, Embedder, Usage

TEXTS = numbered(50)


def test_an_unchanged_model_has_cosines_of_1(tmp_path):
    with OpenAIServer() as server:
        made = openai_embedder(server, cache=tmp_path)
        made.embed(TEXTS)
        found = made.verify_cache([*TEXTS, "never seen"], sample=7)
    assert (found.texts, found.cached, len(found.cosines), found.changed) == (51, 50, 7, ())
    assert min(found.cosines) == 0
    assert max(found.cosines) == 49
    assert found.lowest == pytest.approx(1.0, abs=1e-6)
    assert (found.usage.sent, found.usage.cache_hits, found.usage.requests) == (7, 0, 1)
    assert "7 of 50 cached vectors embedded again: cosine 1.0" in str(found)
    assert "the model is unchanged" in str(found)


def test_a_model_that_changed_under_its_name_is_reported_and_the_cache_unchanged(tmp_path):
    with OpenAIServer() as server:
        made = openai_embedder(server, cache=tmp_path)
        made.embed(TEXTS)

        def another(reply):
            for item in reply["data"]:
                item["embedding"] = item["embedding"][::-1].copy()

        from support.openai_server import Fault

        server.fault_for(lambda texts, number: Fault(transform=another))
        found = made.verify_cache(TEXTS, sample=3)
        assert len(found.changed) == 3
        assert found.lowest < 0.5
        assert "not from the current model: 3 vectors" in str(found)
        assert np.array_equal(made.embed(TEXTS[:1]).vectors[0], vector_of(TEXTS[0]))


def test_vectors_of_another_length_count_as_changed(tmp_path):
    with OpenAIServer() as server:
        made = openai_embedder(server, model_info={"unit_length": None}, cache=tmp_path)
        made.import_vectors(TEXTS, [vector_of(text) * np.float32(1.01) for text in TEXTS], verify=0)
        found = made.verify_cache(TEXTS, sample=3)
        assert len(found.changed) == 3
        assert found.lowest == pytest.approx(1 / 1.01, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_vectors_of_every_dtype_can_be_compared(dtype, tmp_path):
    with OpenAIServer() as server:
        made = openai_embedder(server, dtype=dtype, dimensions=256, cache=tmp_path)
        made.embed(TEXTS)
        assert made.verify_cache(TEXTS, sample=50).lowest == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary"])
def test_vectors_quantized_by_the_provider_can_be_compared(dtype, tmp_path):
    with VoyageServer() as server:
        made = Embedder("voyage:voyage-4", base_url=server.base_url, api_key="test-key", dtype=dtype, cache=tmp_path)
        made.embed(TEXTS, input_type="query")
        assert made.verify_cache(TEXTS, input_type="query").lowest == pytest.approx(1.0)
        assert made.verify_cache(TEXTS).cached == 0


def test_longer_cached_vectors_are_compared_at_the_width_in_use(tmp_path):
    with OpenAIServer() as server:
        openai_embedder(server, cache=tmp_path).embed(TEXTS)
        made = openai_embedder(server, dimensions=256, cache=tmp_path)
        assert made.verify_cache(TEXTS).lowest == pytest.approx(1.0, abs=1e-6)


def test_nothing_is_sent_if_nothing_is_cached(tmp_path):
    with OpenAIServer() as server:
        found = openai_embedder(server, cache=tmp_path).verify_cache(TEXTS)
        assert (found.lowest, found.usage, len(server.requests)) == (None, Usage(), 0)
        assert "nothing was compared" in str(found)


def test_without_a_cache_there_is_nothing_to_verify():
    message = r"cache: verify_cache needs a cache \(got False\)"
    with OpenAIServer() as server, pytest.raises(ConfigurationError, match=message):
        openai_embedder(server).verify_cache(TEXTS)
