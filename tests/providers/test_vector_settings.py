"""Settings of dtype, dimensions and options: what is refused, and which vectors may be mixed."""

import numpy as np
import pytest
from support.cohere_server import CohereServer
from support.embedders import numbered, openai_embedder
from support.openai_server import OpenAIServer

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.adapters.base import embed_lists

SMALL = "openai:text-embedding-3-small"
TEXTS = numbered(3)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_dtype_that_the_provider_cannot_return_is_refused_even_if_model_info_lists_it(dtype):
    with OpenAIServer() as server, pytest.raises(ConfigurationError, match="does not offer"):
        openai_embedder(server, dtype=dtype, model_info={"dtypes": ["float32", "int8", "uint8"]})
    with CohereServer() as server:
        made = Embedder(
            "cohere:embed-v4.0",
            base_url=server.base_url,
            dtype="float16",
            cache=False,
            model_info={"dtypes": ["float32", "float16"]},
            api_key="test-key",
        )
        assert made.embed(TEXTS).vectors.dtype == np.float16


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_fewer_dimensions_of_an_integer_dtype_are_refused_if_they_would_be_truncated_locally(dtype):
    info = {"like": "local:nomic-ai/nomic-embed-text-v1.5"}
    with pytest.raises(ConfigurationError, match=f"with dtype='{dtype}' cannot be truncated"):
        Embedder("voyage:voyage-4", api_key="k", cache=False, dimensions=256, dtype=dtype, model_info=info)


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": np.dtype("float16")},
        {"dtype": np.array([1])},
        {"dtype": 5},
        {"query_prompt": "\ud800"},
        {"provider_options": {"user": "\ud800"}},
        {"provider_options": {"user": 2**70}},
        {"on_long_text": ["truncate"]},
    ],
    ids=repr,
)
def test_values_of_the_wrong_type_are_refused_by_the_constructor(settings):
    with pytest.raises(ConfigurationError):
        Embedder(SMALL, api_key="k", cache=False, **settings)


def test_cached_vectors_of_two_widths_are_refused_for_every_dtype(server, tmp_path):
    for text, width in (("a", 8), ("b", 16)):
        openai_embedder(server, "some-model", cache=tmp_path).import_vectors([text], [[1.0] * width], verify=0)
    for dtype in ("float32", "float16", "ubinary"):
        with pytest.raises(ConfigurationError, match="two widths"):
            openai_embedder(server, "some-model", cache=tmp_path, dtype=dtype).embed(["a", "b"])
    with pytest.raises(ConfigurationError, match="two widths"):
        openai_embedder(server, "some-model", cache=tmp_path).verify_cache(["a", "b"])


@pytest.mark.parametrize("texts", ["ab", "ba"])
def test_cached_vectors_of_two_widths_and_dtypes_are_refused_by_every_method(texts, tmp_path):
    with OpenAIServer(dimensions=8) as server:
        made = {
            dtype: openai_embedder(server, "some-model", cache=tmp_path, dtype=dtype)
            for dtype in ("float32", "float16")
        }
        made["float32"].embed(["a"])
        server.dimensions = 16
        made["float16"].embed(["b"])
        asking = openai_embedder(server, "some-model", cache=tmp_path, dtype="float16")
        for ask in (
            asking.embed,
            lambda texts: embed_lists(asking, texts),
            lambda texts: list(asking.embed_iter(texts)),
        ):
            with pytest.raises(ConfigurationError, match="two widths"):
                ask([*texts])


def test_different_vector_spaces_have_different_names():
    def space(**settings):
        return Embedder("some-model", base_url="http://localhost:1/v1", cache=False, **settings).space

    info = {"dimensions": 16, "allowed_dimensions": [8, 16]}
    prefix, centered = ({"model_info": {**info, "cut": cut}, "dimensions": 8} for cut in ("prefix", "centered"))
    assert space(**prefix) != space(**centered)
    assert space() != space(provider_options={"lora": "a"}) != space(provider_options={"lora": "b"})


def test_the_space_of_a_model_has_its_whole_name():
    def space(name):
        return Embedder(name, base_url="http://localhost:1/v1", cache=False).space

    name = "organization/a-fine-tuned-model-with-a-long-name-of-its-own"
    long = f"{name}-and-more-than-64-characters-checkpoint-"
    assert space(f"{long}1000") != space(f"{long}2000")
    assert space("m" * 64) == f"openai:{'m' * 64}@http://localhost:1/v1/unknown/float32"


@pytest.mark.parametrize(
    ("models", "space"),
    [
        (("voyage:voyage-4", "voyage:voyage-4-lite"), "voyage:voyage-4/1024/float32"),
        (("cohere:embed-v5.0-pro", "cohere:embed-v5.0-fast"), "cohere:embed-v5/2048/float32"),
    ],
)
def test_models_of_one_family_share_a_space(models, space):
    assert {Embedder(model, api_key="k", cache=False).space for model in models} == {space}
