"""Vectors in replies that are refused, and never cached."""

import numpy as np
import pytest
from support.cohere_server import CohereServer
from support.embedders import numbered, openai_embedder
from support.openai_replies import Fault
from support.openai_server import OpenAIServer
from support.voyage_server import VoyageServer, to_dtype, voyage_vector

from embedkit_core import BadReplyError, Embedder, PartialFailureError
from embedkit_core.adapters.base import embed_lists

TEXTS = numbered(3)


def voyage(server, **settings):
    settings = {"base_url": server.base_url, "api_key": "test-key", "cache": False, **settings}
    return Embedder("voyage:voyage-4", **settings)


def overflowing(reply):
    reply["data"][0]["embedding"][0] = 70_000


def test_a_number_outside_the_range_of_float16_is_refused_and_not_cached(server, tmp_path):
    server.faults = [Fault(transform=overflowing)]
    half = openai_embedder(server, dtype="float16", cache=tmp_path)
    with pytest.raises(BadReplyError, match="does not fit into float16"):
        half.embed(TEXTS)
    assert half.embed(TEXTS).usage.sent == 3


def embedded(made, texts):
    return made.embed(texts).vectors.tolist()


@pytest.mark.parametrize("ask", [embedded, lambda made, texts: embed_lists(made, texts).rows], ids=["matrix", "lists"])
def test_a_cached_number_outside_the_range_of_float16_is_requested_again(ask, tmp_path):
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


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("served", [(256, "float"), (1024, "as asked")], ids=["type ignored", "width ignored"])
def test_integer_vectors_are_never_truncated(dtype, served, tmp_path):
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


def test_an_integer_vector_of_zeros_is_refused_and_not_cached(tmp_path):
    def emptied(reply):
        reply["data"][1]["embedding"][:] = 0

    with VoyageServer() as server:
        made = voyage(server, dtype="int8", cache=tmp_path, max_retries=0)
        server.faults = [Fault(transform=emptied)]
        with pytest.raises(BadReplyError, match="a vector of zeros"):
            made.embed(TEXTS)
        assert made.embed(TEXTS).usage.sent == 3


@pytest.mark.parametrize("dtype", ["float32", "float16", "binary"])
def test_a_vector_with_fewer_dimensions_than_requested_is_refused_and_not_cached(dtype, tmp_path):
    info = {"allowed_dimensions": [256], "cut": "prefix"}
    with OpenAIServer(dimensions=96) as server:
        made = openai_embedder(server, "some-model", dimensions=256, dtype=dtype, model_info=info, cache=tmp_path)
        with pytest.raises(BadReplyError, match="96 dimensions, fewer than the requested 256"):
            made.embed(TEXTS)
        server.dimensions = 512
        assert made.embed(TEXTS).usage.sent == 3
        assert made.embed(TEXTS).usage.cache_hits == 3


@pytest.mark.parametrize("row", [["0.1", "0.2"], [True, False], [None, 1.0], {"a": 1}, [0.0, 0.0]], ids=repr)
def test_an_embedding_that_is_not_a_vector_is_refused(row):
    with OpenAIServer() as server:
        body = {"data": [{"index": 0, "embedding": row}], "usage": {"total_tokens": 1}}
        server.fault_for(lambda texts, number: Fault(status=200, body=body))
        with pytest.raises(BadReplyError):
            openai_embedder(server, "some-model").embed(["x"])


@pytest.mark.parametrize("rows", [{"a": [0.5]}, "abc", 5], ids=repr)
def test_a_cohere_reply_without_a_list_is_refused(rows):
    with CohereServer() as server:
        server.fault_for(lambda texts, number: Fault(status=200, body={"embeddings": {"base64": rows}}))
        with pytest.raises(BadReplyError):
            Embedder("cohere:embed-v4.0", base_url=server.base_url, api_key="test-key", cache=False).embed(["x"])


def test_a_width_that_cannot_be_bit_packed_is_refused_when_the_reply_shows_it():
    with OpenAIServer(dimensions=10) as server, pytest.raises(BadReplyError, match="cannot pack by eight"):
        openai_embedder(server, "some-model", dtype="ubinary").embed(TEXTS)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_not_finite_is_refused_in_every_spelling(number):
    with OpenAIServer() as server:
        body = f'{{"data": [{{"index": 0, "embedding": [0.5, {number}]}}], "usage": {{"total_tokens": 1}}}}'
        server.fault_for(lambda texts, request_number: Fault(raw=body.encode()))
        with pytest.raises(BadReplyError):
            openai_embedder(server, "some-model").embed(["x"])


def test_a_number_outside_the_range_of_float32_is_refused_without_a_warning_of_numpy(server):
    server.faults = [Fault(raw=b'{"data": [{"embedding": [1e39, 0.5]}]}')]
    with pytest.raises(BadReplyError, match="not finite"):
        openai_embedder(server, "some-model", cache=False, max_retries=0).embed(["a"])
