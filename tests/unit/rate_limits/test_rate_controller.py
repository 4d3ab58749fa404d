"""Rate control on a virtual clock: limits in headers, hidden limits, refusals and deadlines."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import numbered, openai_embedder
from support.openai_server import Bucket, OpenAIServer, tokens_of, vector_of
from support.virtual import LIMITS, Simulation, VirtualServer

from embedkit_core.common.errors import ProviderError, RateLimitError, TimedOutError, UnavailableError
from embedkit_core.common.types import Limits, LimitStatus, RateLimitStatus
from embedkit_core.engine.rate_limits.provider_limits import ProviderLimit, TokenBucket
from embedkit_core.engine.scheduler.items import RequestSpec

# The overload of the benchmark: 8,000 texts of 60 tokens, at a bucket that admits 60 % of the offered tokens.
RATE, BURST = 30_000, 125_000


def overload(n: int = 8_000, seed: int = 0, **server: object) -> tuple[float, VirtualServer]:
    """Return the duration relative to the shortest that the bucket allows, and the server."""
    sim = Simulation(VirtualServer(tokens_per_second=RATE, burst=BURST, **server), seed=seed)
    ticket = sim.submit([f"text {i}" for i in range(n)])
    seconds = sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert set(sim.server.billed.values()) == {1}
    return seconds / ((sim.server.tokens - BURST) / RATE), sim.server


@pytest.mark.parametrize("headers_at_reply", [False, True])
@pytest.mark.parametrize("limits_per_minute", [False, True])
def test_an_overload_ends_as_soon_as_the_bucket_allows_if_the_server_sends_headers(headers_at_reply, limits_per_minute):
    ratio, server = overload(sends_headers=True, headers_at_reply=headers_at_reply, limits_per_minute=limits_per_minute)
    assert ratio < 1.03
    assert server.refused <= 1


@pytest.mark.parametrize("sends_retry_after", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_an_overload_ends_nearly_as_soon_if_the_server_sends_no_headers(seed, sends_retry_after):
    ratio, server = overload(seed=seed, sends_retry_after=sends_retry_after)
    assert ratio < 1.08
    assert server.refused <= 0.05 * server.requests


@given(
    rate=st.integers(2_000, 200_000),
    burst=st.integers(5_000, 300_000),
    sends_headers=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_overload_ends_without_paying_twice(rate, burst, sends_headers, seed):
    sim = Simulation(
        VirtualServer(tokens_per_second=rate, burst=max(burst, rate, 20_000), sends_headers=sends_headers), seed=seed
    )
    ticket = sim.submit([f"text {i}" for i in range(6_000)])
    seconds = sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert set(sim.server.billed.values()) == {1}
    ideal = max(0.0, (sim.server.tokens - sim.server.burst) / rate)
    # The best, or the speed of 16 requests in flight without a bucket; finding the rate takes a few seconds.
    assert seconds < 1.15 * ideal + (1.5 if sends_headers else 5.0)
    assert sim.server.refused <= (2 if sends_headers else 6 + 0.07 * sim.server.requests)


def test_wrong_rate_limit_headers_are_ignored_after_a_few_contradictions():
    sim = Simulation(VirtualServer(tokens_per_second=RATE, burst=BURST))
    wrong = RateLimitStatus(None, LimitStatus(10_000_000, 9_999_000, 0.006))
    sim.server.rate_limit_status = lambda now: wrong
    ticket = sim.submit([f"text {i}" for i in range(8_000)])
    assert sim.run() < 1.15 * (8_000 * 60 - BURST) / RATE
    assert (ticket.pending, ticket.failed) == (0, {})
    assert sim.server.refused <= 3 * 16


def test_the_rate_follows_a_limit_that_falls_and_rises():
    server = VirtualServer(tokens_per_second=60_000, burst=60_000)
    sim = Simulation(server)
    ticket = sim.submit([f"text {i}" for i in range(40_000)])
    sim.run(until=15)
    server.tokens_per_second = 20_000
    sim.run(until=30)
    slow = server.tokens
    sim.run(until=20)
    assert server.tokens - slow == pytest.approx(20 * 20_000, rel=0.1)
    server.tokens_per_second = 60_000
    sim.run(until=60)
    fast = server.tokens
    sim.run(until=10)
    assert ticket.pending == 0 or server.tokens - fast == pytest.approx(10 * 60_000, rel=0.25)
    assert server.refused <= 0.05 * server.requests


def test_retry_after_is_kept_by_all_who_use_the_model():
    sim = Simulation(VirtualServer())
    sim.submit(["warm up"])
    sim.run()
    error = RateLimitError("slow down", retry_after=7.0)
    sim.server.fault = lambda number: error if number == 2 else None
    sim.submit(["one"])
    sim.run(until=1)
    refused_at = sim.now
    sim.submit(["two"], is_query=True)
    sim.run()
    assert all(when >= refused_at + 5.9 for when, _ in sim.server.times[1:])
    assert len(sim.finished) == 3


def test_after_one_refusal_without_details_the_next_request_is_small_and_alone():
    sim = Simulation(VirtualServer())
    sim.submit(["warm up"])
    sim.run()
    sim.server.fault = lambda number: RateLimitError("slow down") if number == 2 else None
    sim.submit([f"text {i}" for i in range(5_000)])
    sim.run()
    (_, first), (second_at, second), *_ = sim.server.times[1:]
    assert first <= 256 * 66
    after = [tokens for at, tokens in sim.server.times if at > second_at]
    assert min(second, *after) <= 32 * 66
    assert sim.finished[-1].failed == {}


def test_without_headers_the_number_of_requests_in_flight_doubles_from_four():
    sim = Simulation(VirtualServer())
    sim.submit([f"text {i}" for i in range(20_000)], max_in_flight=64)
    sim.run()
    starts = [at - sim.server.times[1][0] for at, _ in sim.server.times[1:]]
    assert starts[0] == 0
    assert sum(start < 0.001 for start in starts) == 4
    assert sum(start < 0.025 for start in starts) <= 8
    assert sum(start < 0.05 for start in starts) <= 16
    assert sim.peak == 64


def test_with_headers_all_requests_that_the_limits_allow_are_sent_at_once():
    sim = Simulation(VirtualServer(tokens_per_second=10_000_000 / 60, burst=10_000_000, sends_headers=True))
    sim.submit([f"text {i}" for i in range(20_000)])
    sim.run()
    starts = [at for at, _ in sim.server.times[1:]]
    assert starts[15] == starts[0]


def test_impossible_limits_in_headers_are_ignored():
    sim = Simulation(VirtualServer())
    sim.server.rate_limit_status = lambda now: None
    provider_limit = ProviderLimit(1.0)
    for status in (LimitStatus(0, 0, 1.0), LimitStatus(100, -1, 1.0), LimitStatus(100, 101, 1.0)):
        provider_limit.update_from_headers(status, 0.0, 0.0, 1.0)
    assert provider_limit.bucket.rate is None


@given(less=st.floats(0, 1), later=st.floats(0.1, 1e6), limit=st.floats(1, 1e9))
def test_tiny_changes_of_the_remaining_tokens_never_cause_an_endless_wait(less, later, limit):
    provider_limit = ProviderLimit(1.0)
    provider_limit.update_from_headers(LimitStatus(limit, limit / 2, 1.0), 0.0, 0.0, 0.0)
    provider_limit.update_from_headers(LimitStatus(limit, limit / 2 - min(less, limit / 2), 1.0 + later), 0.0, 1.0, 1.0)
    assert provider_limit.wait(limit, 1.0) <= 2 * 86_400


def test_a_reply_at_the_time_of_a_refusal_counts_as_a_success():
    provider_limit = ProviderLimit(1.0)
    provider_limit.rate_limited(1.0, provider_limit.take(1.0, 5.0), 5.0, 5.0)
    provider_limit.first_success(1.0, 5.0)
    assert provider_limit.wait(1.0, 6.0) == 0.0


def test_if_requests_are_limited_each_holds_more_texts_within_the_model_limits():
    sim = Simulation(VirtualServer(requests_per_second=2, request_burst=10, sends_headers=True))
    sim.submit([f"text {i}" for i in range(20_000)])
    seconds = sim.run()
    assert seconds < 10
    assert sim.server.refused == 0
    assert max(tokens for _, tokens in sim.server.times) <= LIMITS.tokens


def test_an_overloaded_server_gets_fewer_concurrent_requests_and_more_after_it_recovers():
    sim = Simulation(VirtualServer())
    peaks: list[int] = []

    def fault(number: int) -> ProviderError | None:
        peaks.append(sim.scheduler.in_flight)
        return UnavailableError("overloaded", status=503) if sim.scheduler.in_flight > 6 else None

    sim.server.fault = fault
    ticket = sim.submit([f"text {i}" for i in range(20_000)])
    sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert sum(peak > 6 for peak in peaks) < 0.4 * len(peaks)
    sim.server.fault = lambda number: None
    sim.submit([f"more {i}" for i in range(100_000)])
    sim.peak = 0
    sim.run()
    assert sim.peak == 16


def test_failures_that_are_no_overload_do_not_slow_down():
    rng = random.Random(1)
    sim = Simulation(VirtualServer())
    sim.server.fault = lambda number: UnavailableError("lost") if rng.random() < 0.08 else None
    ticket = sim.submit([f"text {i}" for i in range(20_000)])
    seconds = sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert seconds < 1.3 * seconds_without_limits(20_000)


def seconds_without_limits(n: int) -> float:
    sim = Simulation(VirtualServer())
    sim.submit([f"text {i}" for i in range(n)])
    return sim.run()


def test_a_query_is_sent_first_when_tokens_are_limited():
    sim = Simulation(VirtualServer(tokens_per_second=RATE, burst=BURST, sends_headers=True))
    sim.submit([f"text {i}" for i in range(8_000)])
    sim.run(until=4)
    began = sim.now
    query = sim.submit(["a question"], size=10, is_query=True)
    while query.pending:
        sim.run(until=0.01)
    assert sim.now - began < 0.3


def test_a_large_request_is_not_starved_by_small_requests_of_another_queue():
    sim = Simulation(VirtualServer(tokens_per_second=2_000, burst=20_000, sends_headers=True))
    small, large = sim.spec(b"small"), sim.spec(b"large")
    sim.submit([f"warm {i}" for i in range(300)], spec=small)
    sim.run(until=2)
    ticket = sim.submit(["large"], size=7_000, spec=large)
    for i in range(40):
        sim.submit([f"small {i} {n}" for n in range(20)], spec=small)
        sim.run(until=0.5)
    assert ticket.pending == 0


def test_requests_are_filled_by_billed_tokens():
    sim = Simulation(VirtualServer(estimate_ratio=1.6))
    sim.submit([f"text {i}" for i in range(4_000)], size=100)
    sim.run()
    # By the estimate, a request would hold only 160 texts.
    assert len(sim.server.times) <= 20


def test_a_deadline_ends_a_call_and_its_requests_in_flight_are_finished():
    sim = Simulation(VirtualServer(latency=10.0))
    ticket = sim.submit([f"text {i}" for i in range(100)], deadline=sim.now + 3)
    sim.run(until=3.0)
    assert ticket in sim.finished
    assert len(ticket.failed) == 100
    assert all(isinstance(error, TimedOutError) for error in ticket.failed.values())
    assert len({id(error) for error in ticket.failed.values()}) == 100
    sim.run()
    assert sim.server.requests == 1
    assert not sim.scheduler.registry.items


def test_a_deadline_of_one_caller_does_not_end_the_text_of_another():
    sim = Simulation(VirtualServer(latency=10.0))
    hasty = sim.submit(["text"], deadline=sim.now + 3)
    patient = sim.submit(["text"])
    sim.run()
    assert list(hasty.failed) == [0]
    assert (patient.failed, patient.coalesced + patient.sent) == ({}, 1)
    assert sim.server.billed == {"text": 1}


def test_a_deadline_that_was_met_keeps_no_reference_to_the_call():
    sim = Simulation(VirtualServer())
    for i in range(100):
        sim.submit([f"text {i}"], deadline=sim.now + 600)
        sim.run(until=1)
    assert not sim.scheduler.registry.deadlines._tickets
    assert sim.scheduler.poll(sim.now).wake_at is None or sim.scheduler.poll(sim.now + 601).wake_at is None


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 50)), max_size=30), st.floats(0.1, 100), st.floats(1, 100))
def test_a_bucket_grants_no_more_than_its_capacity_and_refill(takes, rate, capacity):
    bucket, now, taken = TokenBucket(), 0.0, 0.0
    bucket.set(rate, capacity, now)
    for pause, amount in takes:
        now += pause
        now += bucket.wait(amount, now) * (1 + 1e-9)
        bucket.take(amount, now)
        taken += amount
        assert taken <= capacity + rate * now + max(0.0, amount - capacity) + 1e-6 * (1 + taken)
        assert math.isfinite(now)


def test_a_model_that_accepts_few_texts_never_receives_more():
    sim = Simulation(VirtualServer(requests_per_second=1, request_burst=2, sends_headers=True))
    sim.submit([f"text {i}" for i in range(500)], spec=sim.spec(limits=Limits(texts=96)))
    sim.run()
    assert sim.server.requests >= 6
    assert max(tokens for _, tokens in sim.server.times) <= 96 * 60


def test_occasional_refusals_of_queries_do_not_slow_down_an_ingest():
    sim = Simulation(VirtualServer())
    sim.submit(["warm up"])
    sim.run(until=3)
    refused = {3, 8, 13}
    sim.server.fault = lambda number: RateLimitError("slow down") if number in refused else None
    for i in range(12):
        sim.submit([f"question {i}"], size=5, is_query=True)
        sim.run(until=3)
    sim.submit([f"text {i}" for i in range(4_000)])
    assert sim.run() < 3 * seconds_without_limits(4_000)
    assert all(ticket.failed == {} for ticket in sim.finished)


def test_endless_refusals_cause_no_internal_error():
    sim = Simulation(VirtualServer())
    sim.server.fault = lambda number: RateLimitError("slow down", retry_after=0.001)
    for i in range(300):
        sim.submit([f"text {i}"])
        sim.run()
    assert sim.server.requests > 1_500
    assert all(isinstance(ticket.failed[0], RateLimitError) for ticket in sim.finished)


@pytest.mark.parametrize("refusals", [1, 2, 6])
def test_a_refused_query_does_not_slow_down_an_ingest_right_after_it(refusals):
    sim = Simulation(VirtualServer())
    sim.submit(["warm up"])
    sim.run(until=3)
    sim.server.fault = lambda number: RateLimitError("slow down") if 2 <= number < 2 + refusals else None
    sim.submit(["a question"], size=3, is_query=True)
    sim.run()
    began = sim.now
    sim.submit([f"text {i}" for i in range(4_000)])
    sim.run()
    assert sim.now - began < 10
    assert all(ticket.failed == {} for ticket in sim.finished)


def test_a_small_bucket_is_found_with_small_requests():
    sim = Simulation(VirtualServer(tokens_per_second=1_000, burst=5_000))
    ticket = sim.submit([f"text {i}" for i in range(300)], size=400)
    seconds = sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert seconds < 2 * sim.server.tokens / 1_000


def test_a_fixed_window_that_refills_at_its_end_is_recognized():
    sim = Simulation(VirtualServer(tokens_per_second=1.0, burst=100_000, window=60.0, sends_headers=True))
    sim.submit(["a question"], size=3, is_query=True)
    sim.run(until=2)
    ticket = sim.submit([f"text {i}" for i in range(8_000)])
    seconds = sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert seconds < 60 * (8_000 * 60 / 100_000 + 1)
    assert sim.server.refused <= 0.1 * sim.server.requests


def test_a_pause_is_kept_while_many_other_queues_are_created():
    sim = Simulation(VirtualServer())
    sim.submit(["warm up"])
    sim.run()
    sim.server.fault = lambda number: RateLimitError("later", retry_after=100) if number == 2 else None
    sim.submit(["refused"])
    sim.run(until=1)
    for i in range(600):
        other = RequestSpec(b"other", 60.0, Limits(texts=i + 1), "truncate", "fake:other", 2, {})
        sim.submit([f"other {i}"], spec=other)
        sim.run(until=0.001)
    refused_at = sim.now
    sim.submit(["after"])
    sim.run()
    assert sim.now - refused_at > 90


# Through the real SDK


@pytest.mark.parametrize("silent", [False, True])
def test_an_overload_of_a_real_server_ends_with_every_vector_and_nothing_is_billed_twice(silent):
    """The simulations above and benchmarks/ show how long it takes, and how few requests are refused."""
    texts = numbered(3_000, tokens=20)
    total = sum(map(tokens_of, texts))
    with OpenAIServer(latency=0.02, bucket=Bucket(total / 4, total / 4, silent)) as server:
        result = openai_embedder(server, dimensions=8).embed(texts)
        assert server.billed_texts == Counter(texts)
        refused = sum(exchange.outcome == "refused" for exchange in server.requests)
        assert refused < len(server.requests) / 2
    for position in range(0, len(texts), 97):
        expected = vector_of(texts[position], 8, 1536, "text-embedding-3-small")
        assert np.allclose(result.vectors[position], expected, atol=1e-6)
