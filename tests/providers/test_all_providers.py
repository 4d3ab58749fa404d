"""The behavior that all providers share, through both frameworks."""

import copy
import json
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from support.bedrock_server import COHERE_4, BedrockServer, bedrock_vector
from support.cohere_server import LENGTH, CohereServer, cohere_vector
from support.embedders import MINILM, error_texts, long_text, needs_local_model, numbered, reference_vectors
from support.embeddings_server import EmbeddingsServer
from support.google_server import GoogleServer, VertexServer, google_vector
from support.json_servers import HFInferenceServer, NomicServer, hf_vector, nomic_vector
from support.openai_replies import Fault
from support.openai_server import OpenAIServer, tokens_of, vector_of
from support.voyage_server import VoyageServer, voyage_vector

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    ConfigurationError,
    InputError,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    TextTooLongError,
)
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

KEY = "test-key"
AWS = ("AWS_BEARER_TOKEN_BEDROCK", "AWS_REGION", "AWS_PROFILE")


@dataclass(frozen=True)
class Family:
    """How the tests reach the models of a provider; `server` is None for local models."""

    model: str
    variable: str | None
    server: Any
    asymmetric: bool
    most_texts: int
    most_tokens: int
    other: dict[str, Any]  # settings that change vectors
    tells: bool = True  # a text is refused or reported if it is too long

    def vector(self, text, role="document"):
        if self.server is None:
            return reference_vectors([text])[0]
        if self.server is VoyageServer:
            return voyage_vector(text, role)
        if self.server is CohereServer:
            return cohere_vector(text, f"search_{role}") / LENGTH
        if self.server is NomicServer:
            return nomic_vector(text, f"search_{role}")
        if self.server is HFInferenceServer:
            return hf_vector(text)
        if self.server in (GoogleServer, VertexServer):
            return google_vector(text, f"RETRIEVAL_{role.upper()}", model=self.model.partition(":")[2])
        if self.server is BedrockServer:
            return bedrock_vector(text, COHERE_4, f"search_{role}") / LENGTH
        return vector_of(text)


FAMILIES = {
    "openai": Family(
        "openai:text-embedding-3-small", "OPENAI_API_KEY", OpenAIServer, False, 2048, 300_000, {"dimensions": 256}
    ),
    "voyage": Family("voyage:voyage-4", "VOYAGE_API_KEY", VoyageServer, True, 1000, 320_000, {"dimensions": 256}),
    "cohere": Family("cohere:embed-v4.0", "CO_API_KEY", CohereServer, True, 96, 128_000, {"dimensions": 256}),
    "nomic": Family(
        "nomic:nomic-embed-text-v1.5", "NOMIC_API_KEY", NomicServer, True, 50, 409_600, {"dimensions": 256}, tells=False
    ),
    "hf-inference": Family(
        "hf-inference:BAAI/bge-m3", "HF_TOKEN", HFInferenceServer, False, 32, 10_000_000, {"document_prompt": "doc: "}
    ),
    "google": Family(
        "google:gemini-embedding-001", "GOOGLE_API_KEY", GoogleServer, True, 100, 20_000, {"dimensions": 256}
    ),
    "vertex": Family(
        "vertex:text-embedding-005", "GOOGLE_API_KEY", VertexServer, True, 250, 20_000, {"dimensions": 256}
    ),
    "bedrock": Family(
        *(f"bedrock:{COHERE_4}", "AWS_BEARER_TOKEN_BEDROCK", BedrockServer, True, 96, 128_000, {"dimensions": 256})
    ),
    "local": Family(MINILM, None, None, False, 10_000, 10_000_000, {"document_prompt": "passage: "}),
}
SERVED = [name for name, family in FAMILIES.items() if family.server]
HOSTS = {"langchain": EmbedKitEmbeddings, "llamaindex": EmbedKitEmbedding}


@pytest.fixture(params=HOSTS)
def host(request):
    return HOSTS[request.param]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    names = ("OPENAI_API_KEY", "VOYAGE_API_KEY", "VOYAGE_API_KEY_PATH", "CO_API_KEY", "COHERE_API_KEY")
    for name in (*names, "GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", *AWS):
        monkeypatch.delenv(name, raising=False)
    for name in ("NOMIC_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=[name if name != "local" else pytest.param(name, marks=needs_local_model) for name in FAMILIES])
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def far_end(family):
    if family.server is None:
        yield None
        return
    with family.server(api_key=KEY) as running:
        yield running


@pytest.fixture(params=SERVED)
def served(request):
    return FAMILIES[request.param]


@pytest.fixture
def server(served):
    with served.server(api_key=KEY) as running:
        yield running


def made(host, family, server: EmbeddingsServer | None, **settings):
    reach = {} if server is None else {"base_url": server.base_url, "api_key": KEY}
    return host(**{"model": family.model, "cache": False, **reach, **settings})


def documents(model, texts):
    if isinstance(model, EmbedKitEmbeddings):
        return model.embed_documents(texts)
    return model.get_text_embedding_batch(texts)


def query(model, text):
    return model.embed_query(text) if isinstance(model, EmbedKitEmbeddings) else model.get_query_embedding(text)


def assert_rows(rows, family, texts, role="document"):
    np.testing.assert_allclose(np.array(rows), np.stack([family.vector(text, role) for text in texts]), atol=2e-6)


# Limits of a request


def test_every_request_is_within_the_limits_of_the_model(host, served, server):
    server.max_inputs, server.max_tokens_per_request = served.most_texts, served.most_tokens
    texts = numbered(400, tokens=1000)
    rows = documents(made(host, served, server), texts)
    assert len(rows) == 400
    assert {request.status for request in server.requests} == {200}
    for request in server.requests:
        assert len(request.texts) <= served.most_texts
        assert sum(map(tokens_of, request.texts)) <= served.most_tokens


# Input types and configurations


def test_a_query_of_an_asymmetric_model_never_gets_a_document_vector(host, family, far_end, tmp_path):
    model = made(host, family, far_end, cache=tmp_path)
    first, asked = documents(model, ["x"])[0], query(model, "x")
    assert_rows([first], family, ["x"])
    assert_rows([asked], family, ["x"], "query")
    assert (first != asked) == family.asymmetric
    assert (documents(model, ["x"])[0], query(model, "x")) == (first, asked)
    assert model.usage.requests == (2 if family.asymmetric else 1)


def test_one_cache_folder_keeps_the_vectors_of_each_configuration_apart(host, family, far_end, tmp_path):
    plain = made(host, family, far_end, cache=tmp_path)
    other = made(host, family, far_end, cache=tmp_path, **family.other)
    half = made(host, family, far_end, cache=tmp_path, dtype="float16")
    rows = [documents(model, ["x"])[0] for model in (plain, other, half, other, half, plain)]
    assert (rows[0], rows[1], rows[2]) == (rows[5], rows[3], rows[4])
    assert rows[0] != rows[1]
    assert_rows([rows[0]], family, ["x"])
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-3)


# Pickles and copies


def test_pickles_and_copies_use_the_same_cache_and_hold_no_key(host, family, far_end, tmp_path, monkeypatch):
    if far_end is not None:
        monkeypatch.setenv(family.variable, KEY)
    model = made(host, family, far_end, cache=tmp_path, api_key=None)
    rows = documents(model, ["x", "y"])
    pickled = pickle.dumps(model)
    assert KEY.encode() not in pickled
    for other in (pickle.loads(pickled), copy.deepcopy(model)):
        assert documents(other, ["x", "y"]) == rows
        assert other.usage.requests == 0
        assert documents(other, ["z"]) == [pytest.approx(family.vector("z").tolist(), abs=2e-6)]


# Order and count


def without_one(reply):
    reply["data"].pop()


def of_another_width(reply):
    reply["data"][0]["embedding"] = reply["data"][0]["embedding"][:-8]


def not_finite(reply):
    reply["data"][1]["embedding"][3] = np.nan


@pytest.mark.parametrize("damage", [without_one, of_another_width, not_finite])
def test_an_invalid_reply_is_refused_and_not_cached(host, served, server, tmp_path, damage):
    server.faults = [Fault(transform=damage)]
    model = made(host, served, server, cache=tmp_path, max_retries=0)
    with pytest.raises(BadReplyError):
        documents(model, ["x", "y", "z"])
    assert_rows(documents(model, ["x", "y", "z"]), served, ["x", "y", "z"])
    assert model.usage.cache_hits == 0


@pytest.mark.parametrize("name", ["openai", "voyage"])
def test_rows_are_ordered_by_index_and_a_repeated_index_is_refused(host, name):
    family = FAMILIES[name]
    with family.server(api_key=KEY, shuffle_index=True) as server:
        assert_rows(documents(made(host, family, server), ["x", "y", "z"]), family, ["x", "y", "z"])

    def repeated(reply):
        reply["data"][0]["index"] = 1

    with family.server(api_key=KEY) as server:
        server.faults = [Fault(transform=repeated)]
        with pytest.raises(BadReplyError, match="repeated index"):
            documents(made(host, family, server), ["x", "y", "z"])


# Retries


def test_a_lasting_rate_limit_is_tried_max_retries_plus_one_times(host, served, server):
    server.fault_for(lambda texts, number: Fault(status=429, headers={"retry-after-ms": "1"}))
    with pytest.raises(RateLimitError):
        documents(made(host, served, server, max_retries=2), ["x"])
    assert len(server.requests) == 3


class Limiter:
    def __init__(self):
        self.taken = 0

    def acquire(self, **how):
        self.taken += 1
        return True


def test_a_rate_limiter_grants_one_permit_per_request_and_none_for_a_cache_hit(host, served, server, tmp_path):
    limiter = Limiter()
    model = made(host, served, server, cache=tmp_path, rate_limiter=limiter, max_batch_texts=2)
    texts = numbered(5)
    documents(model, texts)
    documents(model, texts)
    assert limiter.taken == len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AuthenticationError), (402, QuotaError), (403, AuthenticationError), (404, BadRequestError)],
)
def test_a_permanent_error_is_not_retried(host, served, server, status, error):
    server.fault_for(lambda texts, number: Fault(status=status))
    with pytest.raises(error) as caught:
        documents(made(host, served, server, max_batch_texts=1), numbered(20))
    assert len(server.requests) == 1
    assert KEY not in error_texts(caught.value)


# Partial failure


def test_one_rejected_text_is_named_and_the_others_are_cached(host, served, server, tmp_path):
    texts = numbered(100)
    server.rejected_texts = {texts[61]}
    model = made(host, served, server, cache=tmp_path)
    with pytest.raises(PartialFailureError) as caught:
        documents(model, texts)
    assert list(caught.value.failed) == [61]
    assert len(caught.value.succeeded) == 99
    server.rejected_texts = set()
    seen = len(server.requests)
    assert_rows(documents(model, texts), served, texts)
    assert [request.texts for request in server.requests[seen:]] == [(texts[61],)]


# Empty and long texts


def test_an_empty_list_is_valid_and_an_empty_text_is_an_error_without_a_request(host, family, far_end):
    model = made(host, family, far_end)
    assert documents(model, []) == []
    for empty in ("", "  \n\t"):
        with pytest.raises(InputError) as caught:
            documents(model, ["fine", empty])
        assert caught.value.indices == (1,)
    with pytest.raises(InputError):
        query(model, " ")
    assert model.usage.requests == 0


@pytest.fixture
def short_limit(family, far_end):
    """A text that is too long, and a setting with a limit that is higher than the server's."""
    if far_end is None:
        return long_text(600), {}
    far_end.max_tokens_per_text = 40
    return long_text(60), {"model_info": {"text_tokens": 100 if family.tells else 40}}


def test_a_long_text_is_truncated_and_reported(host, family, far_end, short_limit, caplog):
    long, told = short_limit
    result = made(host, family, far_end, **told).embedder.embed(["short", long, "shorter"])
    assert result.truncated == (1,)
    assert "1 of 3 texts was truncated" in caplog.text
    assert_rows(result.vectors[[0, 2]], family, ["short", "shorter"])
    assert np.linalg.norm(result.vectors[1]) == pytest.approx(1, abs=1e-5)


def test_a_long_text_is_an_error_if_on_long_text_is_error(host, family, far_end, short_limit):
    long, told = short_limit
    with pytest.raises(PartialFailureError) as caught:
        documents(made(host, family, far_end, on_long_text="error", **told), ["short", long])
    assert isinstance(caught.value.failed[1], TextTooLongError)


def test_a_long_text_is_averaged_if_on_long_text_is_mean(host, family, far_end, short_limit):
    long, told = short_limit
    result = made(host, family, far_end, on_long_text="mean", **told).embedder.embed(["short", long])
    assert result.truncated == ()
    assert np.linalg.norm(result.vectors[1]) == pytest.approx(1, abs=1e-5)
    assert_rows(result.vectors[[0]], family, ["short"])


# Dimensions and dtypes


def test_unsupported_dimensions_are_refused_with_the_supported_ones(host, family, far_end):
    with pytest.raises(ConfigurationError, match="it offers"):
        made(host, family, far_end, dimensions=5000)


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_every_value_is_a_python_float_for_every_dtype(host, family, far_end, dtype):
    model = made(host, family, far_end, dtype=dtype)
    rows = [*documents(model, ["x", "y"]), query(model, "x")]
    assert {type(number) for row in rows for number in row} == {float}
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows[0]) == model.embedder.dimensions // (1 if dtype == "float16" else 8)


# LangChain's own suites, with Cohere


class ServedByCohere:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def far(cls):
        with CohereServer(api_key=KEY) as running:
            cls.server = running
            yield

    @property
    def embeddings_class(self):
        return EmbedKitEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "cohere:embed-v4.0", "base_url": self.server.base_url, "api_key": KEY, "cache": False}


class TestCohereUnit(ServedByCohere, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self):
        model = {"model": "cohere:embed-v4.0"}
        return {"CO_API_KEY": KEY}, {**model, "cache": False}, {**model, "api_key": KEY}


class TestCohereIntegration(ServedByCohere, EmbeddingsIntegrationTests):
    pass
