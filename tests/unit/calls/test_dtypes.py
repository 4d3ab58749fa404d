"""Post-processing of vectors: cutting, normalization, packing; and every dtype in the cache."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from support.embedders import numbered, openai_embedder
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.adapters.base import embed_lists
from embedkit_core.cache.codec import decode_all, encode_all
from embedkit_core.common.types import Entry
from embedkit_core.common.vectors import NUMPY_DTYPES, PostProcessing, VectorFormat
from embedkit_core.testing import FakeServer

TEXTS = numbered(5)
DTYPES = sorted(NUMPY_DTYPES)
rows_of_floats = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24).map(lambda shape: (shape[0], 8 * shape[1])),
    elements=st.floats(-1, 1, width=32),
)


def unit(rows):
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.where(lengths == 0, 1, lengths)).astype(np.float32)


# Rows


@given(rows_of_floats, st.integers(1, 300))
def test_cut_rows_are_normalized_prefixes(rows, cut):
    cut_rows = PostProcessing(truncate_to=cut)(rows)
    expected = rows if cut >= rows.shape[1] else unit(rows[:, :cut])
    assert cut_rows.dtype == np.float32
    assert np.array_equal(cut_rows, expected)


@given(rows_of_floats, st.integers(1, 300))
def test_cutting_twice_equals_the_shorter_cut(rows, cut):
    once, twice = (
        PostProcessing(truncate_to=cut // 2 + 1)(rows),
        PostProcessing(truncate_to=cut // 2 + 1)(PostProcessing(truncate_to=cut + 1)(rows)),
    )
    np.testing.assert_allclose(once, twice, atol=1e-6)


@given(rows_of_floats)
def test_packed_rows_equal_those_of_sentence_transformers(rows):
    ubinary, binary = (PostProcessing(dtype=dtype)(rows) for dtype in ("ubinary", "binary"))
    packed = np.packbits(rows > 0).reshape(len(rows), -1)
    assert np.array_equal(ubinary, packed)
    assert np.array_equal(binary, (packed - 128).view(np.int8))
    assert (ubinary.dtype, binary.dtype) == (np.uint8, np.int8)


def test_layer_normalization_before_a_cut_equals_centering():
    torch = pytest.importorskip("torch", reason="no local model: torch is not installed")
    rows = np.random.default_rng(1).standard_normal((7, 768)).astype(np.float32) * 3 + 0.5
    whole = torch.nn.functional.layer_norm(torch.from_numpy(rows), (768,))
    expected = torch.nn.functional.normalize(whole[:, :256], dim=1).numpy()
    np.testing.assert_allclose(PostProcessing(truncate_to=256, center=True)(rows), expected, atol=1e-6)
    np.testing.assert_allclose(
        PostProcessing(truncate_to=256, center=True)(unit(rows)), expected, atol=1e-6
    )  # of a cached one


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
def test_packed_rows_are_cut_between_bytes(dtype):
    rows = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    whole, short = PostProcessing(dtype=dtype)(rows), PostProcessing(dtype=dtype)(rows[:, :32])
    assert np.array_equal(PostProcessing(truncate_to=32, source=dtype, dtype=dtype)(whole), short)


def test_post_processing_without_effect_is_false_and_in_no_key():
    assert not PostProcessing()
    assert PostProcessing().key_parts() == {}
    assert PostProcessing(truncate_to=8, normalize=True, dtype="binary").key_parts() == {
        "cut": 8,
        "unit": True,
        "dtype": "binary",
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_format_computes_its_width(dtype):
    form = VectorFormat(dtype, 64)
    assert form.width == (8 if dtype in ("binary", "ubinary") else 64)
    assert form.dimensions_of(form.width) == 64
    assert VectorFormat(dtype).width is None


# In a cache


@given(st.data())
def test_vectors_of_every_dtype_survive_encoding(data):
    element = data.draw(st.sampled_from([np.float32, np.float16, np.int8, np.uint8]))
    vector = data.draw(
        npst.arrays(
            element,
            st.integers(1, 40),
            elements={"allow_nan": False, "allow_infinity": False} if element in (np.float32, np.float16) else None,
        )
    )
    truncated, key = data.draw(st.booleans()), bytes(32)
    [(_, blob)] = encode_all([(key, Entry(vector, truncated))])
    back = decode_all([(key, blob)])[key]
    assert back.vector.dtype == element
    assert np.array_equal(back.vector, vector)
    assert back.truncated is truncated
    assert decode_all([(bytes(31) + b"x", blob)]) == {}


# Through an embedder


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_dtypes_that_a_provider_lacks_are_computed_from_its_floats(dtype, tmp_path):
    with OpenAIServer() as server:
        expected = PostProcessing(dtype=dtype)(np.stack([vector_of(text) for text in TEXTS]))
        embedder = openai_embedder(server, dtype=dtype, cache=tmp_path)
        first, again = embedder.embed([*TEXTS, TEXTS[0]]), embedder.embed(TEXTS)
        query = embedder.embed_query(TEXTS[1])
        assert (embedder.dimensions, embedder.space.rpartition("/")[2]) == (1536, dtype)
        assert server.requests[0].body.keys() == {"model", "input", "encoding_format"}
    assert first.vectors.dtype == NUMPY_DTYPES[dtype]
    assert np.array_equal(first.vectors, expected[[*range(5), 0]])
    assert np.array_equal(again.vectors, expected)
    assert np.array_equal(query, expected[1])
    assert (again.usage.cache_hits, again.usage.requests) == (5, 0)


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_dtypes_are_computed_from_cached_floats_without_a_request(dtype, tmp_path):
    with OpenAIServer() as server:
        floats = openai_embedder(server, cache=tmp_path).embed(TEXTS)
        made = openai_embedder(server, dtype=dtype, cache=tmp_path)
        assert made.explain(TEXTS[0]).served_from == "cache"
        result = made.embed(TEXTS)
    assert result.usage.requests == 0
    assert np.array_equal(result.vectors, PostProcessing(dtype=dtype)(floats.vectors))


def test_float16_takes_half_the_space_in_the_cache(tmp_path):
    with OpenAIServer() as server:
        openai_embedder(server, dtype="float16", cache=tmp_path).embed(TEXTS)
        stored = openai_embedder(server, dtype="float16", cache=tmp_path)
        entries = stored.vector_cache.backend.get_many([bytes.fromhex(stored.explain(text).key) for text in TEXTS])
    assert {entry.vector.nbytes for entry in entries.values()} == {1536 * 2}


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_frameworks_get_python_floats_for_every_dtype(dtype):
    with OpenAIServer() as server:
        rows = embed_lists(openai_embedder(server, dtype=dtype), TEXTS).rows
        listed = openai_embedder(server, dtype=dtype).embed(TEXTS).to_lists()
    assert rows == listed
    assert all(type(number) is float for row in rows for number in row)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_dtypes_that_need_calibration_are_refused_if_the_provider_lacks_them(dtype):
    with OpenAIServer() as server, pytest.raises(ConfigurationError, match="it offers float32, float16, binary, ub"):
        openai_embedder(server, dtype=dtype)


def test_a_mistyped_dtype_is_refused_with_the_nearest_name():
    with OpenAIServer() as server, pytest.raises(ConfigurationError, match=r"did you mean 'float16'\?"):
        openai_embedder(server, dtype="float61")


def test_dimensions_that_cannot_be_packed_are_refused():
    with OpenAIServer() as server, pytest.raises(ConfigurationError, match="100 is not a multiple of 8"):
        openai_embedder(server, dtype="binary", dimensions=100)


def test_a_mean_of_packed_vectors_is_refused_before_anything_is_sent():
    with OpenAIServer() as server:
        with pytest.raises(ConfigurationError, match="on_long_text: 'mean' needs a float dtype"):
            openai_embedder(server, dtype="binary", on_long_text="mean")
        assert not server.requests


@pytest.mark.parametrize(("dtype", "left"), [("float16", np.nan), ("ubinary", 0)])
def test_failed_rows_are_listed_and_are_nan_or_zero(dtype, left):
    with OpenAIServer(rejected_texts={TEXTS[2]}) as server:
        result = openai_embedder(server, dtype=dtype, on_error="return").embed(TEXTS)
        lists = embed_lists(openai_embedder(server, dtype=dtype, on_error="return"), TEXTS).rows
    assert list(result.failed) == [2]
    expected = np.full(result.vectors.shape[1], left, dtype=result.vectors.dtype)
    assert np.array_equal(result.vectors[2], expected, equal_nan=left != 0)
    assert np.array_equal(np.array(lists[2]), expected.astype(float), equal_nan=left != 0)
    assert result.to_lists()[2] is None


def test_dtypes_of_one_model_never_share_a_cache_entry(tmp_path):
    with OpenAIServer() as server:
        embedder = [
            openai_embedder(server, dtype=dtype, cache=tmp_path)
            for dtype in ("float32", "float16", "binary", "ubinary")
        ]
        keys = {one.explain(TEXTS[0]).key for one in embedder}
        spaces = {one.space for one in embedder}
    assert len(keys) == len(spaces) == 4


def test_imported_vectors_must_be_float32(tmp_path):
    server = FakeServer()
    half = Embedder("fake:small", base_url=server.url, dtype="float16", cache=tmp_path)
    with pytest.raises(ConfigurationError, match="only imports float32 vectors"):
        half.import_vectors(["a"], [[0.0] * 8])
