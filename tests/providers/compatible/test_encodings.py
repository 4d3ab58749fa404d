"""Encodings of vectors: which one is requested, and how a reply is read."""

import base64

import numpy as np
import pytest
from support.compatible_servers import CompatibleServer, TEIServer
from support.embedders import numbered, openai_embedder
from support.openai_replies import Fault
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import BadReplyError, ConfigurationError, Embedder
from embedkit_core.common.types import Batch
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.openai.azure import Azure
from embedkit_core.providers.openai.provider import OpenAI
from embedkit_core.providers.secrets import Secret

E5 = "intfloat/e5-small-v2"  # in the catalogue: 384 dimensions
UNKNOWN = "new-model"


def at(server, model, **settings):
    return Embedder(
        model, **{"base_url": server.base_url, "cache": False, "max_retries": 0, "document_prompt": "", **settings}
    )


def expected(texts, server, model):
    return np.stack([vector_of(text, server.dimensions, server.dimensions, model) for text in texts])


def encodings(server):
    return [request.body["encoding_format"] for request in server.requests]


@pytest.mark.parametrize(
    ("model", "sent", "requested"),
    [
        # Base64 with the bytes of float32 in the known width is float32.
        (E5, "asked", ["base64", "base64", "base64"]),
        (E5, "floats", ["base64", "base64", "base64"]),
        (E5, "ints", ["base64", "base64", "base64"]),
        # Other bytes may be another dtype or width: numbers from then on.
        (E5, "float64", ["base64", "float", "float", "float"]),
        (E5, "float16", ["base64", "float", "float", "float"]),
        # If the width is unknown, numbers come first.
        (UNKNOWN, "asked", ["float", "base64", "base64"]),
        (UNKNOWN, "floats", ["float", "base64", "base64"]),
        (UNKNOWN, "float64", ["float", "base64", "float", "float"]),
        (UNKNOWN, "float16", ["float", "base64", "float", "float"]),
        (UNKNOWN, "int8", ["float", "base64", "float", "float"]),
    ],
)
def test_vectors_are_right_in_every_encoding_of_a_server(model, sent, requested):
    with CompatibleServer(encoding=sent) as server:
        embedder = at(server, model)
        for texts in (["a b", "c"], ["d"], ["e", "f g"]):
            rows, truth = embedder.embed(texts).vectors, expected(texts, server, model)
            truth = np.round(truth * 127) if sent == "ints" else truth
            np.testing.assert_allclose(rows, truth, atol=1e-7)
        assert encodings(server) == requested


def half(vector):
    return vector.astype(np.float16).astype(np.float32)


def brain(vector):
    return (vector.view(np.uint32) & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize("rounded", [np.array, half, brain])
@pytest.mark.parametrize(("served", "asked"), [(512, 1024), (1024, 512)])
@pytest.mark.parametrize("length", [1, 20])
def test_float32_of_another_width_is_not_decoded_as_another_type(rounded, served, asked, length):
    """A server that ignores dimensions: the number of bytes would fit float16 or float64."""

    def transform(reply):
        for row in reply["data"]:
            row["embedding"] = rounded(row["embedding"] * np.float32(length))

    with TEIServer(dimensions=served) as server:
        server.fault_for(lambda texts, number: Fault(transform=transform))
        embedder = at(server, "tei:any", dimensions=asked)
        for texts in (["a", "b"], ["c"]):
            with pytest.raises(BadReplyError, match=f"{served} dimensions instead of {asked}"):
                embedder.embed(texts)
        assert len(server.requests) == 2


@pytest.mark.parametrize("factor", [2, 4])
def test_a_model_that_is_replaced_by_a_wider_one_is_not_decoded_as_another_type(factor):
    with CompatibleServer() as server:
        embedder = at(server, UNKNOWN)
        embedder.embed(["a"])
        server.dimensions *= factor
        with pytest.raises(BadReplyError, match=f"{384 * factor} dimensions instead of 384"):
            embedder.embed(["b"])


@pytest.mark.parametrize("served", [8, 192, 768])
def test_another_model_under_a_name_of_the_catalogue_is_not_decoded_as_another_type(served):
    """float32 of half the width has the bytes of float16, and of twice the width those of float64."""
    with CompatibleServer(dimensions=served) as server, pytest.raises(BadReplyError, match=f"{served} dimensions inst"):
        at(server, E5).embed(["a"])


@pytest.mark.parametrize(("sent", "dimensions"), [("float32", 768), ("float16", 768), ("float32", 384), ("int8", 384)])
def test_a_part_of_the_models_dimensions_is_right_if_the_server_ignores_dimensions(sent, dimensions):
    """1536 numbers of two bytes have the bytes of the requested 768 of four bytes; of one byte, those of 384."""
    with CompatibleServer(encoding=sent, dimensions=1536, ignores_dimensions=True) as server:
        small = at(server, "text-embedding-3-small", api_key="k", dimensions=dimensions)
        for text in ("a", "b"):
            np.testing.assert_allclose(small.embed([text]).vectors[0], vector_of(text, dimensions), atol=1e-7)
        assert encodings(server)[:2] == ["float", "base64"]


def test_a_server_that_refuses_base64_refuses_one_request():
    with OpenAIServer(api_key=None, base64=False) as server:
        result = at(server, UNKNOWN, max_batch_texts=8).embed(numbered(400))
        assert len(result.vectors) == 400
        assert encodings(server).count("base64") == 1
        assert result.usage.requests == len(server.requests) == 51


def test_a_failed_request_for_base64_is_followed_by_another():
    with OpenAIServer(api_key=None) as server:
        embedder = at(server, UNKNOWN, max_retries=1)
        embedder.embed(["a"])
        server.faults = [Fault(status=503, headers={"retry-after-ms": "1"})]
        embedder.embed(["b"])
        embedder.embed(["c"])
        assert encodings(server) == ["float", "base64", "base64", "base64"]


def test_base64_instead_of_numbers_is_read_if_its_dtype_is_known():
    def as_base64(reply):
        for row in reply["data"]:
            row["embedding"] = base64.b64encode(row["embedding"].astype("<f4").tobytes()).decode()

    with OpenAIServer(api_key=None, base64=False) as server:
        embedder = at(server, UNKNOWN)
        server.faults = [Fault(transform=as_base64)]
        with pytest.raises(BadReplyError, match=r"base64 of an unknown type or width \(6144 bytes per vector\)"):
            embedder.embed(["a"])
        embedder.embed(["a"])
        embedder.embed(["b"])
        server.faults = [Fault(transform=as_base64)]
        assert embedder.embed(["c"]).vectors.tolist() == [vector_of("c", model=UNKNOWN).tolist()]
        assert encodings(server) == ["float", "float", "base64", "float", "float"]


@pytest.mark.parametrize("usage", [{"total_tokens": 2}, None])
def test_a_reply_without_vectors_to_a_request_for_base64_is_requested_again_as_numbers(usage):
    """OpenRouter answers so for models that do not support base64."""

    def emptied(texts, number):
        empty = {"object": "list", "data": [], "usage": usage}
        return Fault(status=200, body=empty) if encodings(server)[-1] == "base64" else None

    with OpenAIServer() as server:
        server.fault_for(emptied)
        embedder = openai_embedder(server, budget_tokens=1000)
        for text in ("a", "b"):
            assert embedder.embed([text]).vectors.tolist() == [vector_of(text).tolist()]
        assert encodings(server) == ["base64", "float", "float"]
        empty_reply = (2, 0) if usage else (0, 5)  # it may have been billed
        assert (embedder.usage.tokens, embedder.usage.possibly_billed_tokens) == (2 + empty_reply[0], empty_reply[1])
        server.faults = [Fault(status=200, body={"object": "list", "data": []})]
        with pytest.raises(BadReplyError, match="no vectors for 1 text"):
            embedder.embed(["c"])


@pytest.mark.parametrize("provider_cls", [OpenAI, Azure])
async def test_openais_own_service_is_asked_for_base64_at_once(provider_cls, monkeypatch):
    with OpenAIServer() as server:
        settings = {"base_url": server.base_url} if provider_cls is Azure else {}
        provider = provider_cls(ProviderSettings("some-model", Secret("test-key"), **settings))
        monkeypatch.setattr(provider, "_base_url", server.base_url)
        client = provider.connect()
        await client.embed(Batch(["a"], provider.request_body("document")))
        await client.aclose()
        assert encodings(server) == ["base64"]


def test_an_option_that_changes_what_base64_means_is_refused():
    for option in ("embed_dtype", "endianness"):
        with pytest.raises(ConfigurationError, match=f"provider_options: must not contain {option}"):
            Embedder("vllm:m", provider_options={option: "float16"}, cache=False)
