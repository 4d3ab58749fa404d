"""Cohere's wire format and refusals, with the real SDK and a local server."""

from decimal import Decimal

import numpy as np
import pytest
from support.cohere_server import CohereServer, cohere_vector
from support.embedders import error_texts, long_text, numbered, statuses
from support.openai_replies import Fault
from support.provider_suites import ServedSuite
from support.voyage_server import to_dtype

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    ConfigurationError,
    Embedder,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    TextTooLongError,
    UnavailableError,
)
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.providers import Secret
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.cohere import Cohere

MODEL = "cohere:embed-v4.0"
TEXTS = numbered(5)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("CO_API_KEY", "COHERE_API_KEY", "CO_API_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with CohereServer() as started:
        yield started


def cohere(server, model=MODEL, **settings):
    return Embedder(model, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **settings})


def as_it_comes(texts, input_type="search_document", dimensions=1536):
    return np.stack([cohere_vector(text, input_type, dimensions) for text in texts])


def expected(texts, input_type="search_document", dimensions=1536):
    rows = as_it_comes(texts, input_type, dimensions)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestCohere(ServedSuite):
    """The real SDK, with a server that repeats text and key in every refusal."""

    server_class = CohereServer
    model = MODEL
    api_key = "co-test-key-of-mine"
    other_model = "cohere:embed-multilingual-v9.0"
    other_dimensions = 256
    wrong_dimensions = 300
    asymmetric = True

    @property
    def options(self):
        return {"input_type": "clustering"}

    def faults(self):
        return {
            "bad_request": Fault(status=404, body=self.server.error("model 'x' not found")),
            "bad_text": Fault(status=400, body=self.server.error("texts contains an element that is not valid")),
        }


class TestCohereModelThatIsNotKnown(TestCohere):
    """An unknown model: its width is known from its reply, and its vectors may not be normalized."""

    model = "cohere:embed-v9.0"
    wrong_dimensions = None


def test_the_request_is_as_documented(server):
    result = cohere(server).embed(TEXTS)
    [request] = server.requests
    assert request.body == {
        "model": "embed-v4.0",
        "texts": TEXTS,
        "input_type": "search_document",
        "embedding_types": ["base64"],
        "truncate": "NONE",
    }
    np.testing.assert_allclose(result.vectors, expected(TEXTS), atol=1e-6)
    assert result.usage.tokens == server.billed_tokens
    assert result.usage.cost_usd == server.billed_tokens * Decimal("0.12") / 1_000_000
    cohere(server).embed_query(TEXTS[0])
    assert server.requests[1].body == request.body | {"texts": TEXTS[:1], "input_type": "search_query"}
    assert not server.unknown_paths


def test_vectors_are_normalized_and_the_key_includes_it(server, tmp_path):
    made = cohere(server, cache=tmp_path)
    rows = made.embed(TEXTS).vectors
    assert np.linalg.norm(as_it_comes(TEXTS), axis=1) == pytest.approx(1.25)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert made.explain("x").key_parts["unit"] is True
    assert np.array_equal(made.embed(TEXTS).vectors, rows)


def test_an_input_type_option_replaces_the_input_type_and_changes_the_key(server):
    clustering = cohere(server, provider_options={"input_type": "clustering"})
    np.testing.assert_allclose(clustering.embed_query("x"), expected(["x"], "clustering")[0], atol=1e-6)
    assert clustering.explain("x").key == clustering.explain("x", input_type="query").key
    assert clustering.explain("x").key != cohere(server).explain("x").key


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_dtypes_come_from_the_provider_unchanged(server, dtype, tmp_path):
    made = cohere(server, dtype=dtype, cache=tmp_path)
    vectors, again = made.embed(TEXTS).vectors, made.embed(TEXTS)
    assert server.requests[0].body["embedding_types"] == [dtype]
    assert vectors.dtype == NUMPY_DTYPES[dtype]
    assert np.array_equal(vectors, np.stack([to_dtype(row, dtype) for row in as_it_comes(TEXTS)]))
    assert np.array_equal(again.vectors, vectors)
    assert again.usage.requests == 0


def test_other_dimensions_are_requested_and_never_truncated_locally(server, tmp_path):
    """Cohere does not document that the prefix of a vector is the vector of fewer dimensions."""
    cohere(server, cache=tmp_path).embed(TEXTS)
    result = cohere(server, dimensions=256, cache=tmp_path).embed(TEXTS)
    assert server.requests[-1].body["output_dimension"] == 256
    assert result.usage.sent == 5
    np.testing.assert_allclose(result.vectors, expected(TEXTS, dimensions=256), atol=1e-6)


def test_no_request_has_more_than_96_texts(server):
    result = cohere(server).embed(numbered(300))
    assert max(len(request.texts) for request in server.requests) <= 96
    assert set(statuses(server)) == {200}
    np.testing.assert_allclose(result.vectors, expected(numbered(300)), atol=1e-6)


def test_a_batch_over_the_limits_is_split_until_it_fits(server):
    server.max_inputs = 10
    np.testing.assert_allclose(cohere(server).embed(numbered(40)).vectors, expected(numbered(40)), atol=1e-6)
    server.max_inputs, server.max_tokens_per_request = 96, 300
    texts = numbered(40, tokens=20)
    np.testing.assert_allclose(cohere(server).embed(texts).vectors, expected(texts), atol=1e-6)


def test_a_long_text_among_short_ones_is_found_and_truncated_by_cohere(server):
    server.max_tokens_per_text = 40
    texts = [*numbered(30), long_text(45), *numbered(40)[30:]]
    result = cohere(server, model_info={"text_tokens": 40}).embed(texts)
    assert result.truncated == (30,)
    kept = " ".join(texts[30].split()[:40])
    np.testing.assert_allclose(result.vectors, expected([*texts[:30], kept, *texts[31:]]), atol=1e-6)
    assert [r.body["truncate"] for r in server.requests if r.status == 200 and texts[30] in r.texts] == ["END"]
    assert set(server.billed_texts.values()) == {1}


def test_texts_far_over_the_limit_are_sent_with_truncation_at_once(server):
    """A corpus of long texts would otherwise cost one refusal per text."""
    server.max_tokens_per_text = 40
    texts = [long_text(200, mark) for mark in "abcdefgh"]
    result = cohere(server, model_info={"text_tokens": 40}).embed([*texts, "short"])
    assert result.truncated == tuple(range(8))
    assert set(statuses(server)) == {200}


def test_the_error_of_a_long_text_has_its_tokens_and_the_limit(server):
    server.max_tokens_per_text = 40
    with pytest.raises(PartialFailureError) as caught:
        cohere(server, on_long_text="error").embed([*TEXTS, long_text(60)])
    error = caught.value.failed[5]
    assert isinstance(error, TextTooLongError)
    assert (error.tokens, error.limit) == (60, 40)


@pytest.mark.parametrize(
    ("status", "message", "error", "shown"),
    [
        (401, "invalid api token", AuthenticationError, "CO_API_KEY"),
        (402, "please add or update your payment method", QuotaError, "no credit"),
        (403, "blocked", AuthenticationError, "HTTP 403"),
        (404, "model 'xyz' not found, make sure the correct model ID was used", BadRequestError, "not found"),
        (422, "invalid output_dimension", BadRequestError, "output_dimension"),
        (400, "valid input_type must be provided", BadRequestError, "input_type"),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month", QuotaError, "no credit"),
        (429, "trial key rate limit exceeded: 100 calls a minute", RateLimitError, "HTTP 429"),
        (498, "blocked input", BadRequestError, "HTTP 498"),
        (499, "request cancelled", UnavailableError, "HTTP 499"),
        (500, "internal server error", UnavailableError, "HTTP 500"),
        (503, "", UnavailableError, "HTTP 503"),
        (529, "overloaded", UnavailableError, "HTTP 529"),
    ],
)
def test_each_refusal_of_cohere_becomes_the_right_error(server, status, message, error, shown):
    server.fault_for(lambda texts, number: Fault(status=status, body=server.error(message)))
    with pytest.raises(error, match=shown) as caught:
        cohere(server, max_retries=0).embed(TEXTS)
    assert len(server.requests) == 1
    assert caught.value.model == MODEL
    assert "test-key" not in error_texts(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "no embeddings of type base64"),
        (b'{"embeddings": [[0.5, 1.0]], "response_type": "embeddings_floats"}', "no embeddings of type base64"),
        (b'{"embeddings": {"float": [[0.5]]}}', "no embeddings of type base64"),
    ],
)
def test_a_reply_of_another_shape_is_refused(server, body, message):
    server.fault_for(lambda texts, number: Fault(raw=body))
    with pytest.raises(BadReplyError, match=message):
        cohere(server).embed(["x"])


def test_a_reset_time_in_a_header_becomes_retry_after(server, monkeypatch):
    monkeypatch.setattr("embedkit_core.providers.cohere.time.time", lambda: 1_000_000_000.0)
    server.fault_for(lambda texts, number: Fault(status=429, headers={"x-ratelimit-reset": "1000000009"}))
    with pytest.raises(RateLimitError) as caught:
        cohere(server, max_retries=0).embed(TEXTS)
    assert caught.value.retry_after == 9


# Keys and hosts


def test_a_key_is_required_at_coheres_own_host_only(server):
    for address in (None, "https://api.cohere.com/v2", "https://api.cohere.com/v1/", "https://API.cohere.com"):
        with pytest.raises(ConfigurationError, match="CO_API_KEY"):
            Embedder(MODEL, base_url=address, cache=False)
    server.api_key = None
    assert len(cohere(server).embed(TEXTS).vectors) == 5


@pytest.mark.parametrize("name", ["CO_API_KEY", "COHERE_API_KEY"])
def test_the_key_is_found_in_the_environment(server, monkeypatch, name):
    monkeypatch.setenv(name, server.api_key)
    assert len(cohere(server, api_key=None).embed(TEXTS).vectors) == 5


def test_the_base_url_of_the_environment_is_used_and_is_part_of_the_key(server, monkeypatch):
    own = Embedder(MODEL, api_key="k", cache=False).explain("x").key
    monkeypatch.setenv("CO_API_URL", f"{server.origin}/v2")
    made = Embedder(MODEL, api_key=server.api_key, cache=False)
    assert len(made.embed(TEXTS).vectors) == 5
    assert made.explain("x").key != own


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v2", "/v2/embed", "/v1/embed"])
def test_a_base_url_may_have_a_version_or_not(server, end):
    assert len(cohere(server, base_url=f"{server.origin}{end}").embed(TEXTS).vectors) == 5


def test_a_gateway_with_cohere_in_its_url_gets_the_request(server):
    """The SDK treats such an address as Cohere's own and removes /v1."""
    server.path = "/v1/cohere.com/v2/embed"
    assert len(cohere(server, base_url=f"{server.origin}/v1/cohere.com").embed(TEXTS).vectors) == 5
    assert not server.unknown_paths


async def test_a_closed_client_has_closed_its_transport(server):
    client = Cohere(ProviderSettings("embed-v4.0", api_key=Secret("k"), base_url=server.base_url)).connect()
    transport = client._http.httpx_client
    assert not transport.is_closed
    await client.aclose()
    assert transport.is_closed
