"""One retry budget: how often a text is sent, by whose policy, and what is never sent again."""

import threading

import pytest
from support.embedders import fake_embedder

from embedkit_core import (
    AuthenticationError,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.testing import FakeServer


def soon(kind=RateLimitError):
    return kind("not now", retry_after=0.005)


@pytest.mark.parametrize("retries", [0, 1, 2, 5])
def test_a_text_is_sent_once_and_then_as_often_as_its_caller_allows(retries):
    """Scenario 23."""
    server = FakeServer()
    server.fault_for = lambda texts: soon()
    with pytest.raises(RateLimitError):
        fake_embedder(server, max_retries=retries).embed(["one"])
    assert len(server.received) == retries + 1


def test_a_text_that_succeeds_at_the_last_retry_is_no_failure():
    server = FakeServer()
    server.faults += [soon(), soon(UnavailableError)]
    result = fake_embedder(server, max_retries=2).embed(["one"])
    assert (result.usage.requests, result.usage.retries, result.usage.sent) == (3, 2, 1)


@pytest.mark.parametrize("error", [AuthenticationError("no"), QuotaError("no credit")])
def test_a_refused_key_or_quota_costs_one_request_for_many_texts(error):
    """Scenario 24."""
    server = FakeServer()
    server.fault_for = lambda texts: error
    with pytest.raises(type(error)):
        fake_embedder(server).embed([f"text {i}" for i in range(1000)])
    assert len(server.received) == 1


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
