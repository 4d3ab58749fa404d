"""Failures: their error classes, which texts they affect, and what their messages contain."""

import json
import logging
import math
from collections import Counter

import numpy as np
import pytest
from support.embedders import error_texts, fake_embedder, numbered, openai_embedder, texts_sent
from support.openai_client import expected
from support.openai_replies import INVALID_INPUT, error
from support.openai_server import Fault, OpenAIServer, vector_of

from embedkit_core import Usage
from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    EmbedKitError,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    TimedOutError,
    UnavailableError,
)
from embedkit_core.testing import FakeServer

SOON = {"retry-after-ms": "1"}


@pytest.mark.parametrize(
    ("fault", "error_class", "status"),
    [
        (Fault.server_error(503), UnavailableError, 503),
        (Fault(cut=True), UnavailableError, None),
        (Fault(cut_after_work=True), UnavailableError, None),
        (Fault(hang=True), TimedOutError, None),
        (Fault(status=408), UnavailableError, 408),
    ],
)
def test_a_lasting_failure_is_raised_as_its_own_class(server, fault, error_class, status):
    server.fault_for(lambda texts, number: fault)
    with pytest.raises(error_class) as caught:
        openai_embedder(server, max_retries=0, timeout=0.3).embed(["a"])
    assert type(caught.value) is error_class
    assert (caught.value.status, caught.value.provider) == (status, "openai")
    assert len(server.requests) == 1


def test_a_server_that_cannot_be_reached_is_unavailable():
    with OpenAIServer() as gone:
        url = gone.base_url
    with pytest.raises(
        UnavailableError, match=r"127\.0\.0\.1:\d+ could not be reached \(.*refused\)\. Check base_url="
    ):
        openai_embedder(gone, base_url=url, max_retries=0).embed(["a"])


def test_a_rate_limit_error_tells_requests_from_tokens(server):
    messages = {
        "requests per min (RPM): Limit 3": True,
        "tokens per min (TPM): Limit 40000": False,
        "RPM or TPM": False,
    }
    for message, counts_requests in messages.items():
        server.faults.append(Fault(status=429, body=error(f"Rate limit reached on {message}")))
        with pytest.raises(RateLimitError) as caught:
            openai_embedder(server, max_retries=0).embed(["a"])
        assert caught.value.counts_requests is counts_requests, message


# Errors without retry

FINAL = {
    "401": (Fault.unauthorized(), AuthenticationError),
    "403": (Fault(status=403), AuthenticationError),
    "404 model": (Fault(status=404, body=error("The model does not exist.", code="model_not_found")), BadRequestError),
    "404": (Fault(status=404, body="not found"), BadRequestError),
    "405": (Fault(status=405), BadRequestError),
    "400 model": (Fault(status=400, body=error("invalid model ID", param="model")), BadRequestError),
    "400 parameter": (Fault(status=400, body=error("too large", param="dimensions")), BadRequestError),
    "429 quota": (Fault.quota(), QuotaError),
    "402": (Fault(status=402), QuotaError),
}


@pytest.mark.parametrize("refusal", FINAL)
def test_a_refusal_that_no_retry_can_fix_costs_one_request(server, refusal):
    fault, error_class = FINAL[refusal]
    server.fault_for(lambda texts, number: fault)
    refused = openai_embedder(server)
    with pytest.raises(error_class) as caught:
        refused.embed(numbered(1000))
    assert type(caught.value) is error_class
    assert (caught.value.status, caught.value.retryable) == (fault.status, False)
    assert (caught.value.model, caught.value.request_id) == ("openai:text-embedding-3-small", "req_00000001")
    assert len(server.requests) == 1
    assert refused.usage == Usage(texts=1000, failed=1000, requests=1)


def test_an_unknown_model_is_named_in_the_error():
    with OpenAIServer(models=["other"]) as server, pytest.raises(BadRequestError, match="`text-embedding-3-small`"):
        openai_embedder(server).embed(numbered(100))
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [error(INVALID_INPUT), error("'$.input' is invalid.", param="input"), "no", {}])
def test_a_server_that_refuses_everything_gets_few_requests(server, body):
    server.fault_for(lambda texts, number: Fault(status=400, body=body))
    with pytest.raises(BadRequestError):
        openai_embedder(server).embed(numbered(1000))
    assert len(server.requests) == 8


def test_a_server_that_starts_to_refuse_everything_gets_few_requests(server):
    embedder = openai_embedder(server)
    embedder.embed(["it works"])
    server.fault_for(lambda texts, number: Fault(status=400, body=error("No models loaded.")))
    with pytest.raises(BadRequestError):
        embedder.embed(numbered(1000))
    assert len(server.requests) <= 1 + 16 * 7  # the requests in flight, each bisected as if it were the first


def test_a_server_that_refuses_every_size_gets_few_requests():
    server = FakeServer()
    server.fault_for = lambda texts: RequestTooLargeError("413")
    with pytest.raises(RequestTooLargeError):
        fake_embedder(server).embed([f"text {i}" for i in range(2000)])
    assert len(server.received) <= 40


# Partial failures


def test_one_batch_of_five_that_keeps_failing_costs_its_texts_only(server, tmp_path):
    texts = numbered(10)
    server.fault_for(lambda sent, number: Fault(status=500, headers=SOON) if texts[4] in sent else None)
    with openai_embedder(server, cache=tmp_path, max_batch_texts=2, max_concurrency=1, max_retries=1) as embedder:
        with pytest.raises(PartialFailureError, match=r"2 of 10 texts failed \(positions 4, 5\)") as caught:
            embedder.embed(texts)
        failure, result = caught.value, caught.value.result
        assert {p: (type(e), e.status) for p, e in failure.failed.items()} == dict.fromkeys(
            (4, 5), (UnavailableError, 500)
        )
        assert failure.succeeded == (0, 1, 2, 3, 6, 7, 8, 9)
        assert np.isnan(result.vectors[[4, 5]]).all()
        assert np.array_equal(result.vectors[list(failure.succeeded)], expected(texts[:4] + texts[6:]))
        assert (result.usage.sent, result.usage.failed, result.usage.requests, result.usage.retries) == (8, 2, 6, 1)
        server.fault_for(lambda sent, number: None)
        before = len(server.requests)
        assert np.array_equal(embedder.embed_documents(texts), expected(texts))
    assert texts_sent(server)[-2:] == texts[4:6]
    assert len(server.requests) == before + 1


@pytest.mark.parametrize("refused", [{500}, {3}, {0, 10, 31}, {3, 500, 999}, {40, 41, 42}])
def test_refused_texts_are_found_and_the_others_are_kept(server, tmp_path, refused):
    texts = numbered(1000)
    server.rejected_texts |= {texts[p] for p in refused}
    valid = [p for p in range(1000) if p not in refused]
    with openai_embedder(server, cache=tmp_path) as embedder:
        with pytest.raises(PartialFailureError) as caught:
            embedder.embed(texts)
        assert set(caught.value.failed) == refused
        assert {type(one) for one in caught.value.failed.values()} == {BadTextError}
        assert np.array_equal(caught.value.result.vectors[valid], expected(texts[p] for p in valid))
        assert server.billed_texts == Counter(texts[p] for p in valid)
        assert len(server.requests) <= 1 + 24 + len(refused) * 2 * math.ceil(math.log2(64) + 1)
        with pytest.raises(PartialFailureError) as again:
            embedder.embed(texts)
        assert (again.value.result.usage.cache_hits, again.value.result.usage.sent) == (1000 - len(refused), 0)
    assert server.billed_texts == Counter(texts[p] for p in valid)


@pytest.mark.parametrize(
    "refused", [range(0, 32, 8), range(500, 560, 3), range(0, 1000, 10)], ids=["at the start", "close", "everywhere"]
)
def test_many_refused_texts_fail_without_the_others(server, refused):
    texts = numbered(1000)
    server.rejected_texts |= {texts[p] for p in refused}
    result = openai_embedder(server, on_error="return").embed(texts)
    assert set(result.failed) == set(refused)
    assert all(type(failure) is BadTextError for failure in result.failed.values())
    assert len(server.requests) <= min(1 + 16 + len(refused) * 2 * 7, 999)


def test_a_failed_duplicate_fails_at_both_positions(server):
    server.rejected_texts.add("bad")
    with pytest.raises(PartialFailureError) as caught:
        openai_embedder(server).embed(["bad", "good", "bad"])
    assert (set(caught.value.failed), caught.value.succeeded) == ({0, 2}, (1,))
    usage = caught.value.result.usage
    assert (usage.texts, usage.duplicates, usage.sent, usage.failed) == (3, 1, 1, 1)


def test_failures_are_returned_with_on_error_return(server):
    server.rejected_texts.add("bad")
    result = openai_embedder(server, on_error="return").embed(["good", "bad", "fine"])
    assert np.isnan(result.vectors[1]).all()
    assert {position: type(failure) for position, failure in result.failed.items()} == {1: BadTextError}
    assert result.to_lists() == [vector_of("good").tolist(), None, vector_of("fine").tolist()]


def test_a_result_with_failures_only_is_returned_too(server):
    server.fault_for(lambda texts, number: Fault.unauthorized())
    result = openai_embedder(server, on_error="return").embed(["a", "b"])
    assert result.vectors.shape == (2, 1536)
    assert np.isnan(result.vectors).all()
    assert result.to_lists() == [None, None]
    assert {type(failure) for failure in result.failed.values()} == {AuthenticationError}


# Messages

PRIVATE = "Alice's diagnosis, privately given"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500])
def test_no_error_or_log_line_contains_a_text_or_the_key(status, caplog):
    caplog.set_level(logging.DEBUG, logger="embedkit_core")
    with OpenAIServer(api_key="sk-very-secret-0123456789", echo_input_in_errors=True) as server:
        server.fault_for(lambda texts, number: Fault(status=status, headers=SOON) if PRIVATE in texts else None)
        openai_embedder(server).embed(["proven"])
        with pytest.raises(EmbedKitError) as caught:
            openai_embedder(server, max_retries=1).embed([PRIVATE, "public"])
    text = error_texts(caught.value) + caplog.text
    assert "HTTP" in text
    for secret in (PRIVATE, server.api_key):
        assert not any(secret[i : i + 12] in text for i in range(len(secret) - 11))


@pytest.mark.parametrize("spell", [str, json.dumps, repr])
@pytest.mark.parametrize("text", ["pin 1234\npwd hunter2\nmum Rose", "\u043f\u0430\u0440\u043e\u043b\u044c 7 2 9"])
@pytest.mark.parametrize("field", ["message", "param"])
def test_a_text_echoed_in_any_spelling_and_field_is_not_repeated(field, text, spell):
    error = {"message": "bad", "type": "t", "param": "input", "code": "c"} | {field: f"Invalid: {spell(text)}"}
    with OpenAIServer() as server:
        server.fault_for(lambda texts, n: Fault(status=400, body={"error": error}))
        with pytest.raises(BadRequestError) as caught:
            openai_embedder(server).embed([text])
        assert "Invalid" not in str(caught.value)


def test_a_reply_of_another_width_ends_the_call_after_two_small_requests():
    """Otherwise every request of the job would be billed for nothing. The second one asks for numbers."""
    with OpenAIServer(dimensions=64) as server:
        texts = [f"text {i}" for i in range(3000)]
        with pytest.raises(BadReplyError, match="64 dimensions instead of 1536") as caught:
            openai_embedder(server).embed(texts)
        assert [len(request.texts) for request in server.requests] == [32, 32]
        assert caught.value.usage.failed == 3000
