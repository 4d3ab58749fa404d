"""A result is an array, a sequence of rows, and a mapping from texts."""

import copy
import pickle
from decimal import Decimal

import numpy as np
import pytest
from support.embedders import fake_embedder

from embedkit_core import PartialFailureError
from embedkit_core.testing import FakeServer

TEXTS = ["Cats purr.", "Dogs bark.", "Cats purr."]


@pytest.fixture
def server():
    return FakeServer(dimensions=4, usd_per_million=Decimal("0.02"))


def test_numpy_takes_a_result_as_its_vectors(server):
    result = fake_embedder(server).embed(TEXTS)
    assert np.asarray(result) is result.vectors
    assert np.array(result) is not result.vectors
    assert np.asarray(result, dtype="float64").dtype == np.float64
    assert np.stack([result, result]).shape == (2, 3, 4)
    assert np.allclose(result @ result[0], result.vectors @ result.vectors[0])
    with pytest.raises(ValueError, match="without a copy"):
        result.__array__("float16", copy=False)
    assert not np.shares_memory(result.__array__(copy=True), result.vectors)


def test_a_result_is_a_sequence_of_rows_and_finds_the_row_of_a_text(server):
    result = fake_embedder(server).embed(iter(TEXTS))
    assert (len(result), result.texts, result.cost_usd) == (3, TEXTS, result.usage.cost_usd)
    assert [row.tolist() for row in result] == result.vectors.tolist()
    assert result[-1].tolist() == result.vectors[2].tolist()
    assert result[1:].shape == (2, 4)
    assert result[np.int64(1)].tolist() == result.vectors[1].tolist()
    for wrong in (None, 1.0, [0, 1], b"a"):
        with pytest.raises(TypeError, match="integer"):
            result[wrong]
    for other in (result, copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert [other[text].tolist() for text in TEXTS] == result.vectors.tolist()
        assert "Dogs bark." in other
        assert "A secret text" not in other
        with pytest.raises(KeyError, match="not one of the texts") as missing:
            other["A secret text"]
        assert "secret" not in str(missing.value)


async def test_the_texts_are_those_of_the_caller_also_if_some_are_empty_or_fail(server):
    server.rejected_texts.add("bad")
    embedder = fake_embedder(server, on_error="return", on_empty_text="zero")
    texts = ["fine", " ", "bad", "also fine", "fine"]
    result = await embedder.aembed(texts)
    texts.clear()  # the caller's list is its own
    assert result.texts == ["fine", " ", "bad", "also fine", "fine"]
    assert (result[" "].any(), np.isnan(result["bad"]).all()) == (False, True)
    with pytest.raises(PartialFailureError) as failed:
        fake_embedder(server).embed(["fine", "bad", "other"])
    assert (len(failed.value.result), failed.value.result.texts) == (3, ())
