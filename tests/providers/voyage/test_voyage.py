"""Voyage AI's wire format and refusals, with a local server."""

from decimal import Decimal

import numpy as np
import pytest
from support.embedders import error_texts, long_text, numbered, statuses
from support.openai_replies import Fault
from support.provider_suites import ServedSuite
from support.voyage_server import VoyageServer, to_dtype, voyage_vector

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    Embedder,
    PartialFailureError,
    QuotaError,
    TextTooLongError,
    UnavailableError,
)
from embedkit_core.common.errors import BadTextError, RequestTooLargeError
from embedkit_core.common.vectors import NUMPY_DTYPES

MODEL = "voyage:voyage-4"
TEXTS = numbered(5)


def finding(field, message):
    return {"detail": [{"loc": ["body", field], "msg": message, "type": "value_error"}]}


def unnumbered(rows):
    return [*rows[:-1], {"embedding": rows[-1]["embedding"]}]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("VOYAGE_API_KEY", "VOYAGE_API_KEY_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with VoyageServer() as started:
        yield started


def voyage(server, model=MODEL, **settings):
    return Embedder(model, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **settings})


def expected(texts, input_type="document", dimensions=1024):
    return np.stack([voyage_vector(text, input_type, dimensions) for text in texts])


class TestVoyage(ServedSuite):
    """The real client, with a server that repeats text and key in every refusal."""

    server_class = VoyageServer
    model = MODEL
    api_key = "pa-test-key-of-mine"
    other_model = "voyage:voyage-3.5-lite"
    other_dimensions = 256
    wrong_dimensions = 300
    asymmetric = True
    dtype = "float32"

    @property
    def options(self):
        return {"input_type": None}

    def faults(self):
        return {
            "bad_text": Fault(status=400, body={"detail": "Input cannot contain empty strings or empty lists"}),
        }


class TestVoyageThatAnswersOutOfTurn(TestVoyage):
    """An unknown model, whose width is known from its reply, and rows in another order."""

    model = "voyage:voyage-9"
    other_model = "voyage:voyage-9-lite"
    wrong_dimensions = None

    @pytest.fixture(autouse=True)
    def far_end(self):
        with VoyageServer(api_key=self.api_key, shuffle_index=True) as self.server:
            yield


def test_the_request_is_as_documented(server):
    result = voyage(server).embed(TEXTS)
    [request] = server.requests
    assert request.body == {
        "model": "voyage-4",
        "input": TEXTS,
        "input_type": "document",
        "truncation": False,
        "encoding_format": "base64",
    }
    assert np.array_equal(result.vectors, expected(TEXTS))
    assert result.usage.tokens == server.billed_tokens
    assert result.usage.cost_usd == result.usage.tokens * Decimal("0.06") / 1_000_000
    assert np.array_equal(voyage(server).embed_query(TEXTS[0]), voyage_vector(TEXTS[0], "query"))
    assert server.requests[1].body == request.body | {"input": TEXTS[:1], "input_type": "query"}
    assert not server.unknown_paths


def test_an_input_type_option_replaces_the_input_type_and_changes_the_key(server):
    plain = voyage(server, provider_options={"input_type": None})
    assert np.array_equal(plain.embed_query(TEXTS[0]), voyage_vector(TEXTS[0], None))
    assert plain.explain(TEXTS[0]).key == plain.explain(TEXTS[0], input_type="query").key
    assert plain.explain(TEXTS[0]).key != voyage(server).explain(TEXTS[0]).key


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_dtypes_come_from_the_provider_unchanged(server, dtype, tmp_path):
    made = voyage(server, dtype=dtype, cache=tmp_path)
    vectors, again = made.embed(TEXTS).vectors, made.embed(TEXTS)
    assert server.requests[0].body["output_dtype"] == dtype
    assert vectors.dtype == NUMPY_DTYPES[dtype]
    assert np.array_equal(vectors, np.stack([to_dtype(row, dtype) for row in expected(TEXTS)]))
    assert np.array_equal(again.vectors, vectors)
    assert again.usage.requests == 0
    assert made.dimensions == 1024


@pytest.mark.parametrize("dtype", ["float32", "binary", "ubinary"])
def test_fewer_dimensions_are_truncated_from_a_cached_vector(server, dtype, tmp_path):
    voyage(server, dimensions=2048, dtype=dtype, cache=tmp_path).embed(TEXTS)
    result = voyage(server, dimensions=256, dtype=dtype, cache=tmp_path).embed(TEXTS)
    assert result.usage.requests == 0
    whole = np.stack([to_dtype(row, dtype.replace("float32", "float")) for row in expected(TEXTS, dimensions=256)])
    np.testing.assert_allclose(result.vectors, whole, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_integer_dtypes_are_requested_again_for_each_width(server, dtype, tmp_path):
    voyage(server, dimensions=2048, dtype=dtype, cache=tmp_path).embed(TEXTS)
    result = voyage(server, dimensions=256, dtype=dtype, cache=tmp_path).embed(TEXTS)
    assert result.usage.sent == 5
    assert server.requests[-1].body["output_dimension"] == 256


def test_requests_stay_within_texts_and_tokens_of_the_model(server):
    server.max_inputs, server.max_tokens_per_request = 1000, 120_000
    voyage(server, "voyage:voyage-3-large").embed(numbered(1200, tokens=150))
    assert all(len(request.texts) <= 1000 and request.tokens <= 120_000 for request in server.requests)
    assert set(statuses(server)) == {200}


def test_a_batch_over_the_limits_is_split_until_it_fits(server):
    server.max_inputs = 10
    result = voyage(server).embed(numbered(40))
    assert np.array_equal(result.vectors, expected(numbered(40)))
    server.max_inputs, server.max_tokens_per_request = 1000, 300
    result = voyage(server).embed(numbered(40, tokens=20))
    assert np.array_equal(result.vectors, expected(numbered(40, tokens=20)))


def test_a_long_text_is_truncated_by_voyage_and_reported(server):
    server.max_tokens_per_text = 40
    texts = [*TEXTS, long_text(60), "and a short one"]
    made = voyage(server)
    result = made.embed(texts)
    assert result.truncated == (5,)
    assert np.array_equal(result.vectors, expected([*TEXTS, " ".join(texts[5].split()[:40]), texts[6]]))
    assert {request.body["truncation"] for request in server.requests if texts[5] in request.texts} == {False, True}
    assert server.billed_texts[texts[5]] == 1


def test_several_long_texts_of_a_request_are_found_one_by_one(server):
    server.max_tokens_per_text = 40
    texts = [long_text(60, "a"), *TEXTS, long_text(60, "b"), long_text(60, "c")]
    result = voyage(server).embed(texts)
    assert result.truncated == (0, 6, 7)
    assert set(server.billed_texts.values()) == {1}


def test_the_error_of_a_long_text_has_the_limit(server):
    server.max_tokens_per_text = 40
    with pytest.raises(PartialFailureError) as caught:
        voyage(server, on_long_text="error").embed([*TEXTS, long_text(60)])
    assert isinstance(caught.value.failed[5], TextTooLongError)
    assert caught.value.failed[5].limit == 40
    assert not any(request.body["truncation"] for request in server.requests)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (Fault(status=401), AuthenticationError, "VOYAGE_API_KEY"),
        (Fault(status=402), QuotaError, "no credit"),
        (Fault(status=403, body={"detail": "not allowed"}), AuthenticationError, "Check api_key= or VOYAGE_API_KEY"),
        (Fault(status=404, body={"message": "no Route"}), BadRequestError, "HTTP 404.: no Route"),
        (Fault(status=410, body={"detail": "gone"}), BadRequestError, "has been retired"),
        (Fault(status=413, body="too large"), RequestTooLargeError, "HTTP 413"),
        (Fault(status=422, body=finding("model", "field required")), BadRequestError, "body.model: field required"),
        (Fault(status=422, body=finding("input", "not a string")), BadTextError, "body.input: not a string"),
        (Fault(status=400, body={"error": {"message": "no such route"}}), BadTextError, "no such route"),
        (Fault(status=400, body={"detail": "", "error_code": "INVALID"}), BadTextError, "INVALID"),
        (Fault(status=400, body=["?"]), BadTextError, "HTTP 400"),
        (Fault(status=500), UnavailableError, "HTTP 500"),
        (Fault(status=501), UnavailableError, "HTTP 501"),
        (Fault(status=529), UnavailableError, "HTTP 529"),
        (Fault(status=502, body="<html>bad gateway</html>"), UnavailableError, "HTTP 502"),
        (Fault(raw=b"<html>"), BadReplyError, "not a list of embeddings"),
        (Fault(raw=b"{}", status=202), BadReplyError, "not a list of embeddings"),
        (Fault(cut=True), UnavailableError, "could not be reached"),
    ],
    ids=str,
)
def test_each_refusal_of_voyage_becomes_the_right_error(server, fault, error, message):
    server.fault_for(lambda texts, number: fault)
    with pytest.raises(error, match=message) as caught:
        voyage(server, max_retries=0).embed(TEXTS[:1])
    assert type(caught.value) is error
    assert len(server.requests) == 1
    assert caught.value.model == MODEL
    assert "test-key" not in error_texts(caught.value)


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows[:-1], lambda rows: [*rows[:-1], rows[0]], unnumbered],
    ids=["one is missing", "one comes twice", "without numbers"],
)
def test_rows_without_distinct_indices_are_refused(server, change):
    server.fault_for(lambda texts, number: Fault(transform=lambda reply: reply | {"data": change(reply["data"])}))
    with pytest.raises(BadReplyError):
        voyage(server, max_retries=0).embed(TEXTS)


def test_a_model_with_open_weights_is_requested_from_the_service(server):
    """The SDK's client would load voyage-4-nano locally."""
    voyage(server, "voyage:voyage-4-nano", dimensions=1024).embed(TEXTS)
    assert [(one.body["model"], one.body["output_dimension"]) for one in server.requests] == [("voyage-4-nano", 1024)]


# Long texts


@pytest.mark.parametrize("index", [1, 7])
def test_a_refusal_with_an_index_beyond_the_request_fails_without_a_loop(server, index):
    body = server.error(f"The example at index {index} in your batch has too many tokens and does not fit")
    server.fault_for(lambda texts, number: Fault(status=400, body=body))
    with pytest.raises(TextTooLongError):
        voyage(server).embed(["x"])
    assert len(server.requests) <= 2


def test_a_text_that_is_refused_although_truncation_was_requested_fails(server):
    body = server.error("The example at index 9 in your batch has too many tokens and does not fit")
    server.fault_for(lambda texts, number: Fault(status=400, body=body) if len(texts[-1]) > 99 else None)
    with pytest.raises(PartialFailureError) as caught:
        voyage(server).embed(["x", long_text(60)])
    assert list(caught.value.failed) == [1]
    assert len(server.requests) <= 6


def test_the_usage_of_a_truncated_text_does_not_change_token_estimates(server):
    server.max_tokens_per_text = 1000
    made = voyage(server, model_info={"text_tokens": 1000})
    made.embed([*numbered(40, tokens=50), long_text(100_000)])
    seen = len(server.requests)
    made.embed([f"again {text}" for text in numbered(400, tokens=50)])
    assert max(request.tokens for request in server.requests[seen:]) <= 16_000 * 1.2
