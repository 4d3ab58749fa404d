"""What a hostile reader found in providers, types and shorter vectors, and what holds against it now."""

import numpy as np
import pytest
from support.cohere_server import CohereServer
from support.embedders import long_text, numbered, openai_embedder
from support.openai_replies import Fault
from support.openai_server import OpenAIServer
from support.voyage_server import VoyageServer, to_dtype, voyage_vector

from embedkit_core import (
    BadReplyError,
    ConfigurationError,
    Embedder,
    PartialFailureError,
    RateLimitError,
    TextTooLongError,
)
from embedkit_core.adapters.base import embed_lists

SMALL = "openai:text-embedding-3-small"
TEXTS = numbered(3)


def voyage(server, **settings):
    settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False, **settings}
    return Embedder("voyage:voyage-4", **settings)


@pytest.mark.parametrize("index", [1, 7])
def test_a_refusal_that_names_a_text_beyond_the_request_ends(index):
    with VoyageServer() as server:
        body = server.error(f"The example at index {index} in your batch has too many tokens and does not fit")
        server.fault_for(lambda texts, number: Fault(status=400, body=body))
        with pytest.raises(TextTooLongError):
            voyage(server).embed(["x"])
        assert len(server.requests) <= 2


def test_a_text_that_the_provider_cuts_and_refuses_all_the_same_fails():
    with VoyageServer() as server:
        body = server.error("The example at index 9 in your batch has too many tokens and does not fit")
        server.fault_for(lambda texts, number: Fault(status=400, body=body) if len(texts[-1]) > 99 else None)
        with pytest.raises(PartialFailureError) as caught:
            voyage(server).embed(["x", long_text(60)])
        assert list(caught.value.failed) == [1]
        assert len(server.requests) <= 6


def test_the_bill_of_a_cut_text_teaches_nothing_of_estimates():
    with VoyageServer(max_tokens_per_text=1000) as server:
        made = voyage(server, model_info={"text_tokens": 1000})
        made.embed([*numbered(40, tokens=50), long_text(100_000)])
        seen = len(server.requests)
        made.embed([f"again {text}" for text in numbered(400, tokens=50)])
        assert max(request.tokens for request in server.requests[seen:]) <= 16_000 * 1.2


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_type_that_a_provider_cannot_be_asked_for_is_refused_whatever_is_said_of_the_model(dtype):
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


def test_a_server_that_repeats_the_key_of_the_request_shows_no_key_that_has_changed_since():
    keys = iter(["alpha-9f8e7d6c5b4a", *["beta-1a2b3c4d5e6f"] * 9])
    with CohereServer(api_key=None) as server:
        made = Embedder("cohere:embed-v4.0", base_url=server.base_url, api_key=lambda: next(keys), cache=False)

        def fault(texts, number):
            seen = server.requests[number - 1].headers["authorization"]
            return Fault(status=404, body=server.error(f"model not found for {seen}"))

        server.fault_for(fault)
        with pytest.raises(Exception, match="HTTP 404") as caught:
            made.embed(TEXTS)
    assert "alpha" not in str(caught.value)


def overflowing(reply):
    reply["data"][0]["embedding"][0] = 70_000


def test_a_number_that_does_not_fit_into_half_the_precision_is_refused_and_not_kept(tmp_path):
    with OpenAIServer() as server:
        server.faults = [Fault(transform=overflowing)]
        half = openai_embedder(server, dtype="float16", cache=tmp_path)
        with pytest.raises(BadReplyError, match="does not fit into float16"):
            half.embed(TEXTS)
        assert half.embed(TEXTS).usage.sent == 3


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("served", [(256, "float"), (1024, "as asked")], ids=["no heed to the type", "to the width"])
def test_whole_numbers_are_never_cut(dtype, served, tmp_path):
    """They became zeros, and were kept."""
    width, kind = served

    def heedless(reply):
        for row in reply["data"]:
            row["embedding"] = to_dtype(voyage_vector("x", dimensions=width), dtype if kind == "as asked" else kind)

    with VoyageServer() as server:
        made = voyage(server, dimensions=256, dtype=dtype, cache=tmp_path, max_retries=0)
        server.fault_for(lambda texts, number: Fault(transform=heedless))
        with pytest.raises(BadReplyError, match="1024 dimensions instead of 256"):
            made.embed(["x"])
        server.fault_for(lambda texts, number: None)
        assert np.array_equal(made.embed(["x"]).vectors[0], to_dtype(voyage_vector("x", dimensions=256), dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_whole_numbers_of_a_model_that_its_provider_is_not_asked_to_cut_are_refused(dtype):
    info = {"like": "local:nomic-ai/nomic-embed-text-v1.5"}
    with VoyageServer() as server, pytest.raises(ConfigurationError, match=f"those of dtype='{dtype}' cannot be"):
        voyage(server, dimensions=256, dtype=dtype, model_info=info)


def test_whole_numbers_that_are_all_zero_are_refused_and_not_kept(tmp_path):
    def emptied(reply):
        reply["data"][1]["embedding"][:] = 0

    with VoyageServer() as server:
        made = voyage(server, dtype="int8", cache=tmp_path, max_retries=0)
        server.faults = [Fault(transform=emptied)]
        with pytest.raises(BadReplyError, match="a vector of zeros"):
            made.embed(TEXTS)
        assert made.embed(TEXTS).usage.sent == 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_a_vector_that_is_shorter_than_what_it_is_to_be_cut_to_is_refused_and_not_kept(dtype, tmp_path):
    """It was taken as it was, and kept where no later call believed it."""
    info = {"allowed_dimensions": [256], "cut": "prefix"}
    with OpenAIServer(dimensions=96) as server:
        made = openai_embedder(server, "some-model", dimensions=256, dtype=dtype, model_info=info, cache=tmp_path)
        with pytest.raises(BadReplyError, match="96 dimensions, fewer than the 256 wanted"):
            made.embed(TEXTS)
        server.dimensions = 512
        assert made.embed(TEXTS).usage.sent == 3
        assert made.embed(TEXTS).usage.cache_hits == 3


def embedded(made, texts):
    return made.embed(texts).vectors.tolist()


@pytest.mark.parametrize("ask", [embedded, lambda made, texts: embed_lists(made, texts).rows], ids=["matrix", "lists"])
def test_a_number_that_does_not_fit_is_not_made_of_a_cached_one_either(ask, tmp_path):
    """Infinities came of it. The text is asked for again, and what comes is refused likewise."""
    info = {"dimensions": 1536, "allowed_dimensions": [256, 1536], "cut": "prefix"}
    with OpenAIServer() as server:
        server.faults = [Fault(transform=overflowing)]
        settings = {"cache": tmp_path, "model_info": info}
        assert openai_embedder(server, "some-model", **settings).embed(TEXTS).vectors.max() == 70_000
        half = openai_embedder(server, "some-model", dtype="float16", max_retries=0, **settings)
        assert len(ask(half, TEXTS[1:])) == 2
        assert len(server.requests) == 1
        server.faults = [Fault(transform=overflowing)]
        with pytest.raises(PartialFailureError, match="does not fit into float16") as caught:
            ask(half, TEXTS)
        assert list(caught.value.failed) == [0]
        assert server.requests[-1].texts == (TEXTS[0],)


@pytest.mark.parametrize("row", [["0.1", "0.2"], [True, False], [None, 1.0], {"a": 1}, [0.0, 0.0]], ids=repr)
def test_a_reply_that_is_no_vector_is_refused(row):
    with OpenAIServer() as server:
        body = {"data": [{"index": 0, "embedding": row}], "usage": {"total_tokens": 1}}
        server.fault_for(lambda texts, number: Fault(status=200, body=body))
        with pytest.raises(BadReplyError):
            openai_embedder(server, "some-model").embed(["x"])


@pytest.mark.parametrize("rows", [{"a": [0.5]}, "abc", 5], ids=repr)
def test_a_reply_of_cohere_s_that_is_no_list_is_refused(rows):
    with CohereServer() as server:
        server.fault_for(lambda texts, number: Fault(status=200, body={"embeddings": {"base64": rows}}))
        with pytest.raises(BadReplyError):
            Embedder("cohere:embed-v4.0", base_url=server.base_url, api_key="test-key", cache=False).embed(["x"])


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
def test_strange_values_are_refused_before_anything_is_sent(settings):
    with pytest.raises(ConfigurationError):
        Embedder(SMALL, api_key="k", cache=False, **settings)


def test_dimensions_that_cannot_be_packed_are_refused_when_a_reply_tells_of_them():
    with OpenAIServer(dimensions=10) as server, pytest.raises(BadReplyError, match="cannot pack by eight"):
        openai_embedder(server, "some-model", dtype="ubinary").embed(TEXTS)


def test_two_widths_under_one_name_are_told_of_for_every_type(tmp_path):
    with OpenAIServer() as server:
        for text, width in (("a", 8), ("b", 16)):
            openai_embedder(server, "some-model", cache=tmp_path).import_vectors([text], [[1.0] * width], verify=0)
        for dtype in ("float32", "float16", "ubinary"):
            with pytest.raises(ConfigurationError, match="two widths"):
                openai_embedder(server, "some-model", cache=tmp_path, dtype=dtype).embed(["a", "b"])
        with pytest.raises(ConfigurationError, match="two widths"):
            openai_embedder(server, "some-model", cache=tmp_path).verify_cache(["a", "b"])


@pytest.mark.parametrize("texts", ["ab", "ba"])
def test_two_widths_in_two_types_are_told_of_whoever_asks(texts, tmp_path):
    """Lists came ragged, and a matrix failed with an error of numpy's."""
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


def test_spaces_that_differ_have_names_that_do():
    def space(**settings):
        return Embedder("some-model", base_url="http://localhost:1/v1", cache=False, **settings).space

    info = {"dimensions": 16, "allowed_dimensions": [8, 16]}
    prefix, centered = ({"model_info": {**info, "cut": cut}, "dimensions": 8} for cut in ("prefix", "centered"))
    assert space(**prefix) != space(**centered)
    assert space() != space(provider_options={"lora": "a"}) != space(provider_options={"lora": "b"})


def test_a_short_secret_within_a_header_is_not_repeated():
    with OpenAIServer() as server:
        body = {"error": {"message": "no route for hunter2"}}
        server.fault_for(lambda texts, number: Fault(status=404, body=body))
        with pytest.raises(Exception, match="404") as caught:
            openai_embedder(server, headers={"x-auth": "Basic hunter2"}).embed(TEXTS)
    assert "hunter2" not in str(caught.value)


def test_a_rate_limit_of_the_key_s_function_is_nobody_s_defect():
    """An error of ours that such a function raises is a failure of it like any other."""

    def key():
        raise RateLimitError("of another provider", retry_after=60.0)

    with OpenAIServer() as server, pytest.raises(Exception, match="failed with RateLimitError"):
        openai_embedder(server, api_key=key, max_retries=0).embed(TEXTS)
