"""How fast requests go out, on a virtual clock: limits told, hidden and the user's own, refusals, deadlines."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.virtual import LIMITS, VirtualServer, World

from embedkit_core.common.errors import ProviderError, RateLimitError, TimedOutError, UnavailableError
from embedkit_core.common.types import Limits, LimitStatus, RateLimitStatus
from embedkit_core.engine.rate_limits.provider_limits import ProviderLimit, TokenBucket
from embedkit_core.engine.rate_limits.user_limits import RateSettings
from embedkit_core.engine.scheduler.items import RequestSpec

# The storm of the benchmark: 8 000 texts of 60 tokens, at a bucket that lets 60 % of what is offered through.
RATE, BURST = 30_000, 125_000


def storm(n: int = 8_000, seed: int = 0, **server: object) -> tuple[float, VirtualServer]:
    """Give how long it takes, against what the bucket allows at best."""
    world = World(VirtualServer(tokens_per_second=RATE, burst=BURST, **server), seed=seed)
    ticket = world.submit([f"text {i}" for i in range(n)])
    seconds = world.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert set(world.server.billed.values()) == {1}
    return seconds / ((world.server.tokens - BURST) / RATE), world.server


@pytest.mark.parametrize("told_late", [False, True])
@pytest.mark.parametrize("limits_a_minute", [False, True])
def test_an_overload_ends_as_soon_as_the_bucket_allows_if_the_server_sends_headers(told_late, limits_a_minute):
    ratio, server = storm(tells=True, told_late=told_late, limits_a_minute=limits_a_minute)
    assert ratio < 1.03
    assert server.refused <= 1


@pytest.mark.parametrize("asks_to_wait", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_an_overload_ends_nearly_as_soon_if_the_server_sends_no_headers(seed, asks_to_wait):
    ratio, server = storm(seed=seed, asks_to_wait=asks_to_wait)
    assert ratio < 1.08
    assert server.refused <= 0.05 * server.requests


@given(
    rate=st.integers(2_000, 200_000), burst=st.integers(5_000, 300_000), tells=st.booleans(), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_any_overload_ends_without_paying_twice(rate, burst, tells, seed):
    world = World(VirtualServer(tokens_per_second=rate, burst=max(burst, rate, 20_000), tells=tells), seed=seed)
    ticket = world.submit([f"text {i}" for i in range(6_000)])
    seconds = world.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert set(world.server.billed.values()) == {1}
    ideal = max(0.0, (world.server.tokens - world.server.burst) / rate)
    # At best, or as fast as 16 in flight are without a bucket; searching for the rate costs a few seconds.
    assert seconds < 1.15 * ideal + (1.5 if tells else 5.0)
    assert world.server.refused <= (2 if tells else 6 + 0.07 * world.server.requests)


def test_wrong_rate_limit_headers_are_ignored_after_a_few_contradictions():
    world = World(VirtualServer(tokens_per_second=RATE, burst=BURST))
    lies = RateLimitStatus(None, LimitStatus(10_000_000, 9_999_000, 0.006))
    world.server.headroom = lambda now: lies
    ticket = world.submit([f"text {i}" for i in range(8_000)])
    assert world.run() < 1.15 * (8_000 * 60 - BURST) / RATE
    assert (ticket.pending, ticket.failed) == (0, {})
    assert world.server.refused <= 3 * 16


def test_the_rate_follows_a_limit_that_falls_and_rises():
    server = VirtualServer(tokens_per_second=60_000, burst=60_000)
    world = World(server)
    ticket = world.submit([f"text {i}" for i in range(40_000)])
    world.run(until=15)
    server.tokens_per_second = 20_000
    world.run(until=30)
    slow = server.tokens
    world.run(until=20)
    assert server.tokens - slow == pytest.approx(20 * 20_000, rel=0.1)
    server.tokens_per_second = 60_000
    world.run(until=60)
    fast = server.tokens
    world.run(until=10)
    assert ticket.pending == 0 or server.tokens - fast == pytest.approx(10 * 60_000, rel=0.25)
    assert server.refused <= 0.05 * server.requests


def test_retry_after_is_kept_by_all_who_use_the_model():
    world = World(VirtualServer())
    world.submit(["warm up"])
    world.run()
    error = RateLimitError("slow down", retry_after=7.0)
    world.server.fault = lambda number: error if number == 2 else None
    world.submit(["one"])
    world.run(until=1)
    refused_at = world.now
    world.submit(["two"], urgent=True)
    world.run()
    assert all(when >= refused_at + 5.9 for when, _ in world.server.times[1:])
    assert len(world.finished) == 3


def test_after_one_refusal_without_details_the_next_request_is_small_and_alone():
    world = World(VirtualServer())
    world.submit(["warm up"])
    world.run()
    world.server.fault = lambda number: RateLimitError("slow down") if number == 2 else None
    world.submit([f"text {i}" for i in range(5_000)])
    world.run()
    (_, first), (second_at, second), *_ = world.server.times[1:]
    assert first <= 256 * 66
    after = [tokens for at, tokens in world.server.times if at > second_at]
    assert min(second, *after) <= 32 * 66
    assert world.finished[-1].failed == {}


def test_without_headers_the_number_of_requests_in_flight_doubles_from_four():
    world = World(VirtualServer())
    world.submit([f"text {i}" for i in range(20_000)], bound=64)
    world.run()
    starts = [at - world.server.times[1][0] for at, _ in world.server.times[1:]]
    assert starts[0] == 0
    assert sum(start < 0.001 for start in starts) == 4
    assert sum(start < 0.025 for start in starts) <= 8
    assert sum(start < 0.05 for start in starts) <= 16
    assert world.peak == 64


def test_with_headers_all_requests_that_the_limits_allow_are_sent_at_once():
    world = World(VirtualServer(tokens_per_second=10_000_000 / 60, burst=10_000_000, tells=True))
    world.submit([f"text {i}" for i in range(20_000)])
    world.run()
    starts = [at for at, _ in world.server.times[1:]]
    assert starts[15] == starts[0]


def test_impossible_limits_in_headers_are_ignored():
    world = World(VirtualServer())
    world.server.headroom = lambda now: None
    flow = ProviderLimit(1.0)
    for allowance in (LimitStatus(0, 0, 1.0), LimitStatus(100, -1, 1.0), LimitStatus(100, 101, 1.0)):
        flow.update_from_headers(allowance, 0.0, 0.0, 1.0)
    assert flow.bucket.rate is None


@given(less=st.floats(0, 1), later=st.floats(0.1, 1e6), limit=st.floats(1, 1e9))
def test_tiny_changes_of_the_remaining_tokens_never_cause_an_endless_wait(less, later, limit):
    flow = ProviderLimit(1.0)
    flow.update_from_headers(LimitStatus(limit, limit / 2, 1.0), 0.0, 0.0, 0.0)
    flow.update_from_headers(LimitStatus(limit, limit / 2 - min(less, limit / 2), 1.0 + later), 0.0, 1.0, 1.0)
    assert flow.wait(limit, 1.0) <= 2 * 86_400


def test_a_reply_at_the_time_of_a_refusal_counts_as_a_success():
    flow = ProviderLimit(1.0)
    flow.rate_limited(1.0, flow.take(1.0, 5.0), 5.0, 5.0)
    flow.first_success(1.0, 5.0)
    assert flow.wait(1.0, 6.0) == 0.0


def per_minute(times: list[tuple[float, int]]) -> tuple[int, int]:
    """Give the most requests and tokens that began within any 60 seconds."""
    windows = [[tokens for at, tokens in times if start <= at < start + 60] for start, _ in times]
    return max(map(len, windows)), max(map(sum, windows))


@given(rpm=st.integers(1, 300), texts=st.integers(1, 400), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_minute_has_more_requests_than_the_user_allows(rpm, texts, seed):
    world = World(VirtualServer(), seed=seed)
    rng = random.Random(seed)
    for i in range(40):
        world.submit([f"{i} {n}" for n in range(rng.randint(1, texts))], rates=RateSettings(rpm, None))
        world.run(until=rng.random())
    world.run()
    assert all(ticket.failed == {} for ticket in world.finished)
    assert len(world.finished) == 40
    assert per_minute(world.server.times)[0] <= rpm


@pytest.mark.parametrize("tpm", [10_000, 100_000, 2_000_000])
def test_no_minute_has_more_tokens_than_the_user_allows_and_most_of_them_are_used(tpm):
    world = World(VirtualServer())
    world.submit([f"text {i}" for i in range(tpm // 30)], rates=RateSettings(None, tpm))
    seconds = world.run()
    assert per_minute(world.server.times)[1] <= tpm
    assert world.server.tokens > 0.85 * tpm * seconds / 60


def test_the_strictest_limit_of_active_callers_applies_and_idle_callers_limit_no_other():
    world = World(VirtualServer())
    world.submit(["a"], rates=RateSettings(6, None))
    world.run()
    began = world.now
    for i in range(20):
        world.submit([f"free {i}"], urgent=True)
        world.run()
    assert world.now - began < 5
    world.run(until=80)
    world.submit(["b"], rates=RateSettings(6, None))
    world.submit(["c"], rates=RateSettings(6, None))
    world.submit(["free"], urgent=True)
    world.run(until=5)
    assert len(world.server.times) == 21 + 1


def test_if_requests_are_limited_each_holds_more_texts_within_the_model_limits():
    world = World(VirtualServer(requests_per_second=2, request_burst=10, tells=True))
    world.submit([f"text {i}" for i in range(20_000)])
    seconds = world.run()
    assert seconds < 10
    assert world.server.refused == 0
    assert max(tokens for _, tokens in world.server.times) <= LIMITS.tokens


def test_requests_grow_no_larger_than_the_token_limit_allows():
    world = World(VirtualServer())
    world.submit([f"text {i}" for i in range(1_000)], rates=RateSettings(3, 10_000))
    world.run()
    requests, tokens = per_minute(world.server.times)
    assert requests <= 3
    assert tokens <= 10_000


def test_an_overloaded_server_gets_fewer_concurrent_requests_and_more_after_it_recovers():
    world = World(VirtualServer())
    peaks: list[int] = []

    def fault(number: int) -> ProviderError | None:
        peaks.append(world.scheduler.in_flight)
        return UnavailableError("overloaded", status=503) if world.scheduler.in_flight > 6 else None

    world.server.fault = fault
    ticket = world.submit([f"text {i}" for i in range(20_000)])
    world.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert sum(peak > 6 for peak in peaks) < 0.4 * len(peaks)
    world.server.fault = lambda number: None
    world.submit([f"more {i}" for i in range(100_000)])
    world.peak = 0
    world.run()
    assert world.peak == 16


def test_failures_that_are_no_overload_do_not_slow_down():
    rng = random.Random(1)
    world = World(VirtualServer())
    world.server.fault = lambda number: UnavailableError("lost") if rng.random() < 0.08 else None
    ticket = world.submit([f"text {i}" for i in range(20_000)])
    seconds = world.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert seconds < 1.3 * undisturbed(20_000)


def undisturbed(n: int) -> float:
    world = World(VirtualServer())
    world.submit([f"text {i}" for i in range(n)])
    return world.run()


def test_a_query_is_sent_first_when_tokens_are_limited():
    world = World(VirtualServer(tokens_per_second=RATE, burst=BURST, tells=True))
    world.submit([f"text {i}" for i in range(8_000)])
    world.run(until=4)
    began = world.now
    query = world.submit(["a question"], size=10, urgent=True)
    while query.pending:
        world.run(until=0.01)
    assert world.now - began < 0.3


def test_a_large_request_is_not_starved_by_small_requests_of_another_queue():
    world = World(VirtualServer(tokens_per_second=2_000, burst=20_000, tells=True))
    small, large = world.lane(b"small"), world.lane(b"large")
    world.submit([f"warm {i}" for i in range(300)], lane=small)
    world.run(until=2)
    ticket = world.submit(["large"], size=7_000, lane=large)
    for i in range(40):
        world.submit([f"small {i} {n}" for n in range(20)], lane=small)
        world.run(until=0.5)
    assert ticket.pending == 0


def test_requests_are_filled_by_billed_tokens():
    world = World(VirtualServer(inflated=1.6))
    world.submit([f"text {i}" for i in range(4_000)], size=100)
    world.run()
    # As estimated, 160 texts would be all that a request holds.
    assert len(world.server.times) <= 20


def test_a_deadline_ends_a_call_and_its_requests_in_flight_are_finished():
    world = World(VirtualServer(latency=10.0))
    ticket = world.submit([f"text {i}" for i in range(100)], deadline=world.now + 3)
    world.run(until=3.0)
    assert ticket in world.finished
    assert len(ticket.failed) == 100
    assert all(isinstance(error, TimedOutError) for error in ticket.failed.values())
    assert len({id(error) for error in ticket.failed.values()}) == 100
    world.run()
    assert world.server.requests == 1
    assert not world.scheduler.registry.items


def test_a_deadline_of_one_caller_does_not_end_the_text_of_another():
    world = World(VirtualServer(latency=10.0))
    hasty = world.submit(["text"], deadline=world.now + 3)
    patient = world.submit(["text"])
    world.run()
    assert list(hasty.failed) == [0]
    assert (patient.failed, patient.coalesced + patient.sent) == ({}, 1)
    assert world.server.billed == {"text": 1}


def test_a_deadline_that_was_met_keeps_no_reference_to_the_call():
    world = World(VirtualServer())
    for i in range(100):
        world.submit([f"text {i}"], deadline=world.now + 600)
        world.run(until=1)
    assert not world.scheduler.registry.deadlines._tickets
    assert world.scheduler.poll(world.now).wake_at is None or world.scheduler.poll(world.now + 601).wake_at is None


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
    world = World(VirtualServer(requests_per_second=1, request_burst=2, tells=True))
    world.submit([f"text {i}" for i in range(500)], lane=world.lane(limits=Limits(texts=96)))
    world.run()
    assert world.server.requests >= 6
    assert max(tokens for _, tokens in world.server.times) <= 96 * 60


def test_occasional_refusals_of_queries_do_not_slow_down_an_ingest():
    world = World(VirtualServer())
    world.submit(["warm up"])
    world.run(until=3)
    refused = {3, 8, 13}
    world.server.fault = lambda number: RateLimitError("slow down") if number in refused else None
    for i in range(12):
        world.submit([f"question {i}"], size=5, urgent=True)
        world.run(until=3)
    world.submit([f"text {i}" for i in range(4_000)])
    assert world.run() < 3 * undisturbed(4_000)
    assert all(ticket.failed == {} for ticket in world.finished)


def test_a_caller_that_waits_for_the_rate_is_polled_rarely():
    world = World(VirtualServer())
    world.submit([f"text {i}" for i in range(300)], rates=RateSettings(None, 6_000))
    polls = 0
    poll = world.scheduler.poll

    def counted(now):
        nonlocal polls
        polls += 1
        return poll(now)

    world.scheduler.poll = counted
    world.run()
    assert polls < 20 * world.server.requests


def test_endless_refusals_cause_no_internal_error():
    world = World(VirtualServer())
    world.server.fault = lambda number: RateLimitError("slow down", retry_after=0.001)
    for i in range(300):
        world.submit([f"text {i}"])
        world.run()
    assert world.server.requests > 1_500
    assert all(isinstance(ticket.failed[0], RateLimitError) for ticket in world.finished)


@pytest.mark.parametrize("refusals", [1, 2, 6])
def test_a_refused_query_does_not_slow_down_an_ingest_right_after_it(refusals):
    world = World(VirtualServer())
    world.submit(["warm up"])
    world.run(until=3)
    world.server.fault = lambda number: RateLimitError("slow down") if 2 <= number < 2 + refusals else None
    world.submit(["a question"], size=3, urgent=True)
    world.run()
    began = world.now
    world.submit([f"text {i}" for i in range(4_000)])
    world.run()
    assert world.now - began < 10
    assert all(ticket.failed == {} for ticket in world.finished)


def test_a_small_bucket_is_found_with_small_requests():
    world = World(VirtualServer(tokens_per_second=1_000, burst=5_000))
    ticket = world.submit([f"text {i}" for i in range(300)], size=400)
    seconds = world.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert seconds < 2 * world.server.tokens / 1_000


def test_a_fixed_window_that_refills_at_its_end_is_recognized():
    world = World(VirtualServer(tokens_per_second=1.0, burst=100_000, window=60.0, tells=True))
    world.submit(["a question"], size=3, urgent=True)
    world.run(until=2)
    ticket = world.submit([f"text {i}" for i in range(8_000)])
    seconds = world.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    assert seconds < 60 * (8_000 * 60 / 100_000 + 1)
    assert world.server.refused <= 0.1 * world.server.requests


def test_a_user_limit_is_kept_while_others_send_requests_in_between():
    world = World(VirtualServer())
    for i in range(6):
        world.submit([f"limited {i}"], rates=RateSettings(2, None))
        world.run(until=0.1)
        world.submit([f"free {i}"], urgent=True)
        world.submit([f"faster {i}"], rates=RateSettings(600, None))
        world.run()
    limited = [at for at, _ in world.server.times]
    assert all(ticket.failed == {} for ticket in world.finished)
    assert world.now - 100 >= 60 * (6 / 2 - 1)
    assert len(limited) <= 18


@pytest.mark.parametrize("rates", [RateSettings(1, None), RateSettings(None, 1), RateSettings(1, 1)])
def test_the_smallest_limits_are_respected(rates):
    world = World(VirtualServer())
    for i in range(3):
        world.submit([f"text {i}"], size=1, rates=rates)
    world.run()
    assert [ticket.failed for ticket in world.finished] == [{}, {}, {}]
    assert world.now >= 100 + 60


def test_an_impossible_bill_does_not_stop_the_model():
    world = World(VirtualServer(inflated=1e-9, per_token=0.0))
    world.submit(["text"], rates=RateSettings(None, 1_000_000))
    world.run()
    world.submit(["another"], rates=RateSettings(None, 1_000_000))
    assert world.run() < 120


def test_a_pause_is_kept_while_many_other_queues_are_created():
    world = World(VirtualServer())
    world.submit(["warm up"])
    world.run()
    world.server.fault = lambda number: RateLimitError("later", retry_after=100) if number == 2 else None
    world.submit(["refused"])
    world.run(until=1)
    for i in range(600):
        other = RequestSpec(b"other", 60.0, Limits(texts=i + 1), "truncate", "fake:other", 2, {})
        world.submit([f"other {i}"], lane=other)
        world.run(until=0.001)
    refused_at = world.now
    world.submit(["after"])
    world.run()
    assert world.now - refused_at > 90
