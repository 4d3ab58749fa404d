"""One meaning for every provider: the same scenarios, for all families, through both hosts.

The numbers are those of the scenarios that the project was specified by: batching (1), roles (10), configurations
(11), pickles (21), order and count (22), retries (23, 24), partial failure (26), empty (27) and long texts (28), and
LangChain's own suites (34).
"""

import copy
import json
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from support.cohere_server import LENGTH, CohereServer, cohere_vector
from support.embedders import MINILM, error_texts, long_text, needs_local_model, numbered, reference_vectors
from support.embeddings_server import EmbeddingsServer
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


@dataclass(frozen=True)
class Family:
    """How the tests reach the models of a provider; `server` is None for those on this machine."""

    model: str
    variable: str | None
    server: Any
    asymmetric: bool
    most_texts: int
    most_tokens: int
    other: dict[str, Any]  # settings that give other vectors

    def vector(self, text, role="document"):
        if self.server is None:
            return reference_vectors([text])[0]
        if self.server is VoyageServer:
            return voyage_vector(text, role)
        if self.server is CohereServer:
            return cohere_vector(text, f"search_{role}") / LENGTH
        return vector_of(text)


FAMILIES = {
    "openai": Family(
        "openai:text-embedding-3-small", "OPENAI_API_KEY", OpenAIServer, False, 2048, 300_000, {"dimensions": 256}
    ),
    "voyage": Family("voyage:voyage-4", "VOYAGE_API_KEY", VoyageServer, True, 1000, 320_000, {"dimensions": 256}),
    "cohere": Family("cohere:embed-v4.0", "CO_API_KEY", CohereServer, True, 96, 128_000, {"dimensions": 256}),
    "local": Family(MINILM, None, None, False, 10_000, 10_000_000, {"document_prompt": "passage: "}),
}
SERVED = [name for name, family in FAMILIES.items() if family.server]
HOSTS = {"langchain": EmbedKitEmbeddings, "llamaindex": EmbedKitEmbedding}


@pytest.fixture(params=HOSTS)
def host(request):
    return HOSTS[request.param]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "VOYAGE_API_KEY", "VOYAGE_API_KEY_PATH", "CO_API_KEY", "COHERE_API_KEY"):
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


# 1: limits of a request


def test_no_request_exceeds_the_limits_of_the_model(host, served, server):
    server.max_inputs, server.max_tokens_per_request = served.most_texts, served.most_tokens
    texts = numbered(400, tokens=1000)
    rows = documents(made(host, served, server), texts)
    assert len(rows) == 400
    assert {request.status for request in server.requests} == {200}
    for request in server.requests:
        assert len(request.texts) <= served.most_texts
        assert sum(map(tokens_of, request.texts)) <= served.most_tokens


# 10 and 11: roles and configurations


def test_a_document_is_never_served_for_a_query_where_the_model_tells_them_apart(host, family, far_end, tmp_path):
    model = made(host, family, far_end, cache=tmp_path)
    first, asked = documents(model, ["x"])[0], query(model, "x")
    assert_rows([first], family, ["x"])
    assert_rows([asked], family, ["x"], "query")
    assert (first != asked) == family.asymmetric
    assert (documents(model, ["x"])[0], query(model, "x")) == (first, asked)
    assert model.usage.requests == (2 if family.asymmetric else 1)


def test_one_folder_serves_each_configuration_its_own_vectors(host, family, far_end, tmp_path):
    plain = made(host, family, far_end, cache=tmp_path)
    other = made(host, family, far_end, cache=tmp_path, **family.other)
    half = made(host, family, far_end, cache=tmp_path, dtype="float16")
    rows = [documents(model, ["x"])[0] for model in (plain, other, half, other, half, plain)]
    assert (rows[0], rows[1], rows[2]) == (rows[5], rows[3], rows[4])
    assert rows[0] != rows[1]
    assert_rows([rows[0]], family, ["x"])
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-3)


# 21: pickles and copies


def test_a_copy_has_the_same_model_and_cache_and_no_key_of_the_environment(
    host, family, far_end, tmp_path, monkeypatch
):
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


# 22: order and count


def without_one(reply):
    reply["data"].pop()


def of_another_width(reply):
    reply["data"][0]["embedding"] = reply["data"][0]["embedding"][:-8]


def not_finite(reply):
    reply["data"][1]["embedding"][3] = np.nan


@pytest.mark.parametrize("damage", [without_one, of_another_width, not_finite])
def test_a_reply_that_does_not_fit_is_refused_and_nothing_of_it_is_kept(host, served, server, tmp_path, damage):
    server.faults = [Fault(transform=damage)]
    model = made(host, served, server, cache=tmp_path, max_retries=0)
    with pytest.raises(BadReplyError):
        documents(model, ["x", "y", "z"])
    assert_rows(documents(model, ["x", "y", "z"]), served, ["x", "y", "z"])
    assert model.usage.cache_hits == 0


@pytest.mark.parametrize("name", ["openai", "voyage"])
def test_a_reply_out_of_order_is_put_right_and_a_repeated_index_refused(host, name):
    family = FAMILIES[name]
    with family.server(api_key=KEY, shuffle_index=True) as server:
        assert_rows(documents(made(host, family, server), ["x", "y", "z"]), family, ["x", "y", "z"])

    def repeated(reply):
        reply["data"][0]["index"] = 1

    with family.server(api_key=KEY) as server:
        server.faults = [Fault(transform=repeated)]
        with pytest.raises(BadReplyError, match="repeated index"):
            documents(made(host, family, server), ["x", "y", "z"])


# 23 and 24: retries


def test_a_lasting_rate_limit_is_asked_max_retries_and_once_more(host, served, server):
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


def test_a_rate_limiter_is_taken_once_a_request_and_never_for_a_hit(host, served, server, tmp_path):
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
def test_what_will_not_pass_is_not_tried_again(host, served, server, status, error):
    server.fault_for(lambda texts, number: Fault(status=status))
    with pytest.raises(error) as caught:
        documents(made(host, served, server, max_batch_texts=1), numbered(20))
    assert len(server.requests) == 1
    assert KEY not in error_texts(caught.value)


# 26: partial failure


def test_one_bad_text_among_many_is_named_and_the_others_are_kept(host, served, server, tmp_path):
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


# 27 and 28: empty and long texts


def test_nothing_is_nothing_and_an_empty_text_is_one_error_before_any_request(host, family, far_end):
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
    """A text that is too long, and what the model is told of its limit: more, so that it learns it."""
    if far_end is None:
        return long_text(600), {}
    far_end.max_tokens_per_text = 40
    return long_text(60), {"model_info": {"text_tokens": 100}}


def test_a_long_text_is_cut_and_named(host, family, far_end, short_limit, caplog):
    long, told = short_limit
    result = made(host, family, far_end, **told).embedder.embed(["short", long, "shorter"])
    assert result.truncated == (1,)
    assert "1 of 3 texts are longer" in caplog.text
    assert_rows(result.vectors[[0, 2]], family, ["short", "shorter"])
    assert np.linalg.norm(result.vectors[1]) == pytest.approx(1, abs=1e-5)


def test_a_long_text_is_an_error_where_that_is_asked_for(host, family, far_end, short_limit):
    long, told = short_limit
    with pytest.raises(PartialFailureError) as caught:
        documents(made(host, family, far_end, on_long_text="error", **told), ["short", long])
    assert isinstance(caught.value.failed[1], TextTooLongError)


def test_a_long_text_is_the_mean_of_its_parts_where_that_is_asked_for(host, family, far_end, short_limit):
    long, told = short_limit
    result = made(host, family, far_end, on_long_text="mean", **told).embedder.embed(["short", long])
    assert result.truncated == ()
    assert np.linalg.norm(result.vectors[1]) == pytest.approx(1, abs=1e-5)
    assert_rows(result.vectors[[0]], family, ["short"])


# Dimensions and types


def test_dimensions_that_are_not_offered_are_refused_with_those_that_are(host, family, far_end):
    with pytest.raises(ConfigurationError, match="it offers"):
        made(host, family, far_end, dimensions=5000)


@pytest.mark.parametrize("dtype", ["float16", "binary", "ubinary"])
def test_every_value_is_a_python_float_whatever_the_type(host, family, far_end, dtype):
    model = made(host, family, far_end, dtype=dtype)
    rows = [*documents(model, ["x", "y"]), query(model, "x")]
    assert {type(number) for row in rows for number in row} == {float}
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows[0]) == model.embedder.dimensions // (1 if dtype == "float16" else 8)


# 34: LangChain's own suites, for those that no other file has


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
