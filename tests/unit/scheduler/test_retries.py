"""Retries: how often a text is sent, how long a retry waits, and what is never sent again."""

import random
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from math import isfinite

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.embedders import fake_embedder, openai_embedder, statuses
from support.openai_client import expected
from support.openai_server import Fault, vector_of

from embedkit_core import (
    AuthenticationError,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    UnavailableError,
    Usage,
)
from embedkit_core.engine.scheduler.retry import RetryPolicy
from embedkit_core.providers.http.headers import retry_after
from embedkit_core.testing import FakeServer

SOON = {"retry-after-ms": "1"}


def soon(kind=RateLimitError):
    return kind("not now", retry_after=0.005)


@pytest.mark.parametrize("retries", [0, 1, 2, 5])
def test_a_text_is_sent_once_and_then_at_most_max_retries_times(server, retries):
    server.fault_for(lambda texts, number: Fault.rate_limited(retry_after_ms=1))
    embedder = openai_embedder(server, max_retries=retries)
    with pytest.raises(RateLimitError) as caught:
        embedder.embed(["a", "b"])
    assert len(server.requests) == retries + 1
    assert embedder.usage == Usage(texts=2, failed=2, requests=retries + 1, retries=retries)
    refusal = caught.value
    assert (refusal.status, refusal.retry_after, refusal.retryable) == (429, 0.001, True)
    assert refusal.request_id == f"req_{retries + 1:08x}"


def test_a_text_that_succeeds_at_the_last_retry_is_no_failure():
    server = FakeServer()
    server.faults += [soon(), soon(UnavailableError)]
    result = fake_embedder(server, max_retries=2).embed(["one"])
    assert (result.usage.requests, result.usage.retries, result.usage.sent) == (3, 2, 1)


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status, headers=SOON) for status in (408, 429, 500, 502, 503, 504, 529)),
        Fault(status=502, raw=b"<html>Bad gateway</html>", headers=SOON),
        Fault(status=503, body="overloaded", headers=SOON),
        Fault(cut=True),
        Fault(hang=True),
    ],
    ids=lambda fault: "cut" if fault.cut else "no answer" if fault.hang else str(fault.status),
)
def test_a_temporary_failure_is_retried_and_answered(server, fault):
    server.faults.append(fault)
    result = openai_embedder(server, timeout=1.0).embed(["a", "b"])
    assert np.array_equal(result.vectors, expected(["a", "b"]))
    assert statuses(server) == [fault.status or (502 if fault.raw else None), 200]
    # A request without a reply, or with a server error, may have been billed.
    max_billed = 0 if fault.status in (429, 503, 529) else 2 * (len("a") + 4)
    price = Decimal("0.02") / 1_000_000
    assert result.usage == Usage(
        texts=2,
        sent=2,
        requests=2,
        retries=1,
        tokens=2,
        priced_usd=2 * price,
        possibly_billed_tokens=max_billed,
        possibly_billed_usd=max_billed * price,
    )


def test_a_retry_waits_as_long_as_the_server_asks(server):
    server.faults.append(Fault.rate_limited(retry_after_ms=700))  # longer than a first wait of our own
    assert np.array_equal(openai_embedder(server).embed_query("a"), vector_of("a"))
    refused, answered = server.requests
    assert answered.started - refused.ended >= 0.7


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({"retry_after": 7}, 7.0),
        ({"retry_after_ms": 1500}, 1.5),
        ({"retry_after_ms": 1500, "retry_after": 7}, 1.5),
        ({"date": timedelta(hours=1)}, 3600.0),
        ({"date": timedelta(hours=-1)}, 0.0),
        ({}, None),
    ],
)
def test_the_wait_asked_for_is_in_the_error(server, asked, seconds):
    dated = {name: datetime.now(UTC) + value if name == "date" else value for name, value in asked.items()}
    server.faults.append(Fault.rate_limited(**dated))
    with pytest.raises(RateLimitError) as caught:
        openai_embedder(server, max_retries=0).embed(["a"])
    assert caught.value.retry_after == (seconds and pytest.approx(seconds, abs=300 if "date" in asked else 1e-9))


@pytest.mark.parametrize("value", ["soon", "Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "-1", "nan", "inf", ""])
def test_an_invalid_retry_after_header_does_not_end_the_retries(server, value):
    server.faults.append(Fault(status=429, headers={"retry-after": value}))
    assert np.array_equal(openai_embedder(server).embed_query("a"), vector_of("a"))


def test_a_key_revoked_during_a_call_stops_the_waiting_texts():
    server = FakeServer()
    chosen = fake_embedder(server, max_concurrency=2, max_batch_texts=32)
    chosen.embed(["warm up"])
    server.fault_for = lambda texts: AuthenticationError("revoked") if len(server.received) > 4 else None
    with pytest.raises(PartialFailureError) as caught:
        chosen.embed([f"text {i}" for i in range(1000)])
    assert len(caught.value.failed) == 1000 - 3 * 32
    assert len(server.received) <= 6


def test_a_key_revoked_while_texts_wait_for_a_retry_stops_them_too():
    server = FakeServer()
    chosen = fake_embedder(server, max_concurrency=8, max_batch_texts=32)
    chosen.embed(["warm up"])
    server.fault_for = lambda texts: (
        UnavailableError("down", retry_after=0.05) if len(server.received) <= 9 else AuthenticationError("revoked")
    )
    with pytest.raises((AuthenticationError, PartialFailureError)):
        chosen.embed([f"text {i}" for i in range(256)])
    assert len(server.received) <= 9 + 8


def test_a_retry_after_that_is_not_a_number_is_ignored():
    server = FakeServer()
    server.faults.append(UnavailableError("down", retry_after=float("nan")))
    assert fake_embedder(server).embed(["one"]).usage.retries == 1


@pytest.mark.parametrize("error", [AuthenticationError("no"), QuotaError("no credit")])
def test_a_refusal_of_the_request_costs_one_request_for_any_number_of_texts(error):
    server = FakeServer()
    server.fault_for = lambda texts: error
    with pytest.raises(type(error)):
        fake_embedder(server).embed([f"text {i}" for i in range(1000)])
    assert len(server.received) == 1


def test_the_first_request_of_a_queue_is_sent_alone():
    """A wrong key, a wrong model or a server that is down costs one request and not a burst."""
    server = FakeServer()
    server.faults += [soon(UnavailableError), soon(UnavailableError)]
    server.hold()
    thread = threading.Thread(
        target=fake_embedder(server, max_concurrency=8).embed, args=([f"t {i}" for i in range(500)],)
    )
    thread.start()
    server.wait_for_requests(1)
    server.release()
    thread.join(20)
    assert [len(seen.texts) for seen in server.received[:3]] == [32, 32, 32]
    assert server.peak_in_flight <= 8
    assert len(server.received) <= 3 + 11


def test_one_refusal_slows_down_all_callers_of_the_account():
    server = FakeServer()
    chosen = fake_embedder(server, max_concurrency=1, max_batch_texts=32)
    chosen.embed(["warm up"])
    server.faults.append(RateLimitError("slow down", retry_after=0.05))
    chosen.embed([f"text {i}" for i in range(64)])
    assert len(server.received) == 4


# Backoff and Retry-After


@given(st.integers(0, 10_000), st.integers())
def test_a_backoff_is_within_its_doubling_limit(failures, seed):
    policy = RetryPolicy()
    wait = policy.delay(failures, UnavailableError("down"), random.Random(seed))
    assert 0 <= wait <= min(policy.cap, policy.base * 2 ** min(failures, 16))


@given(st.floats(allow_nan=False), st.integers(0, 50))
def test_retry_after_is_respected_up_to_the_cap(seconds, failures):
    policy = RetryPolicy()
    wait = policy.delay(failures, RateLimitError("slow down", retry_after=seconds), random.Random(0))
    if seconds > 0:
        assert wait == min(max(seconds, policy.minimum * 2.0 ** min(failures, 16)), policy.retry_after_cap)
    else:  # which says nothing
        assert 0 <= wait <= policy.cap


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_retry_after_ms_takes_precedence_over_seconds(seconds, ms):
    assert retry_after({"retry-after": str(seconds)}, now=0.0) == seconds
    assert retry_after({"retry-after": "60", "retry-after-ms": str(ms)}, now=0.0) == pytest.approx(ms / 1000)
    assert retry_after({"retry-after": str(seconds), "retry-after-ms": "soon"}, now=0.0) == seconds


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.integers(-(10**6), 10**6))
def test_a_retry_after_date_is_read_as_the_seconds_until_then(now, ahead):
    now = now.replace(microsecond=0, tzinfo=UTC)
    date = now + timedelta(seconds=ahead)
    for spelled in (format_datetime(date, usegmt=True), date.strftime("%a, %d %b %Y %H:%M:%S")):
        assert retry_after({"retry-after": spelled}, now=now.timestamp()) == max(0, ahead)


@given(st.text() | st.floats().map(str) | st.integers().map(str))
@example("Fri, 31 Dec 99999999999999999999 23:59:59 GMT")
@example("Fri, 31 Dec 2026 23:59:59 +9999")
@example("9" * 5000)
def test_any_retry_after_header_is_finite_seconds_or_none(value):
    for name in ("retry-after", "retry-after-ms"):
        waits = retry_after({name: value}, now=1.8e9)
        assert waits is None or (isfinite(waits) and waits >= 0)
    assert retry_after({}, now=0.0) is None
