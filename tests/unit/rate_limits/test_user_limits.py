"""The limits per minute that callers set, on a virtual clock. `Simulation` checks them at every request."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.embedders import fake_embedder
from support.virtual import NO_LIMITS, Simulation, VirtualServer

from embedkit_core.common.errors import RateLimitError, UnavailableError
from embedkit_core.common.types import Limits, RateSettings
from embedkit_core.coordination.sliding_window import bulk_limit
from embedkit_core.engine.rate_limits.user_limits import Backlog, UserLimits
from embedkit_core.testing import FakeServer


def per_minute(times: list[tuple[float, int]]) -> tuple[int, int]:
    """Return the most requests and the most tokens sent within any 60 seconds."""
    windows = [[tokens for at, tokens in times if start <= at < start + 60] for start, _ in times]
    return max(map(len, windows)), max(map(sum, windows))


def job(n: int, rates: RateSettings, size: int = 66) -> tuple[float, VirtualServer]:
    """Return the duration of a job of n texts, and the server."""
    sim = Simulation(VirtualServer())
    ticket = sim.submit([f"text {i}" for i in range(n)], rates=rates, size=size)
    seconds = sim.run()
    assert (ticket.pending, ticket.failed) == (0, {})
    return seconds, sim.server


# Jobs that fit into a minute


@pytest.mark.parametrize("rates", [RateSettings(None, 200_000), RateSettings(20, None), RateSettings(60, 150_000)])
@pytest.mark.parametrize("n", [1, 583, 2_000])
def test_a_job_that_fits_into_the_minute_is_as_fast_as_without_limits(n, rates):
    assert job(n, rates)[0] <= 1.1 * job(n, NO_LIMITS)[0]


@pytest.mark.parametrize(("n", "rpm", "at_most"), [(500, 10, 0.5), (20_000, 20, 5.0)])
def test_a_job_of_too_many_requests_is_sent_at_once_in_larger_ones(n, rpm, at_most):
    seconds, server = job(n, RateSettings(rpm, None))
    assert seconds < at_most
    assert 0.9 * bulk_limit(rpm) <= server.requests <= bulk_limit(rpm)


def test_calls_one_after_the_other_are_not_delayed_until_the_minute_is_used_up():
    sim = Simulation(VirtualServer())
    for i in range(6):
        sim.submit([f"text {i}"], rates=RateSettings(6, None))
        sim.run(until=1)
    assert len(sim.finished) == 6
    sim.submit(["text 7"], rates=RateSettings(6, None))
    sim.run()
    assert 60 < sim.now - 100 < 62


# Larger jobs


@pytest.mark.parametrize(("tpm", "size"), [(10_000, 66), (200_000, 66), (1_000_000, 660)])
def test_no_minute_has_more_tokens_than_the_user_allows_and_most_of_them_are_used(tpm, size):
    seconds, server = job(3 * tpm // size, RateSettings(None, tpm), size)
    assert per_minute(server.times)[1] <= tpm
    assert server.tokens >= 0.94 * tpm * seconds / 60


@pytest.mark.parametrize("rates", [RateSettings(100, 200_000), RateSettings(10, 200_000)])
def test_of_two_limits_the_tighter_one_is_used(rates):
    seconds, server = job(20_000, rates)
    requests, tokens = per_minute(server.times)
    assert requests <= rates.requests_per_minute
    assert tokens <= rates.tokens_per_minute
    assert server.tokens >= 0.93 * rates.tokens_per_minute * seconds / 60


def test_a_job_above_the_limit_is_spread_over_the_minute_in_requests_of_useful_size():
    _, server = job(6_000, RateSettings(None, 200_000))
    for start, _ in server.times:
        assert sum(tokens for at, tokens in server.times if start <= at < start + 5) < 200_000 / 60 * 8
    assert sum(tokens for _, tokens in server.times) / server.requests > 1_500


def test_a_text_more_does_not_stop_a_job_that_just_fitted():
    sim = Simulation(VirtualServer())
    rates = RateSettings(None, 200_000)
    sim.submit([f"text {i}" for i in range(3_000)], rates=rates)  # 95 % of the limit
    sim.run(until=0.2)
    sim.submit([f"more {i}" for i in range(300)], rates=rates)
    sim.run()
    assert sim.now - 100 < 70


def test_requests_grow_no_larger_than_the_token_limit_allows():
    _, server = job(1_000, RateSettings(3, 10_000))
    requests, tokens = per_minute(server.times)
    assert requests <= 3
    assert tokens <= 10_000


@pytest.mark.parametrize("rates", [RateSettings(None, 200_000), RateSettings(40, None)])
def test_a_query_is_sent_at_once_while_a_job_uses_the_limit(rates):
    sim = Simulation(VirtualServer())
    sim.submit([f"text {i}" for i in range(12_000)], rates=rates, spec=sim.spec(limits=Limits(texts=64)))
    sim.run(until=70)
    for i in range(4):
        began = sim.now
        query = sim.submit([f"question {i}"], size=10, is_query=True, rates=rates)
        while query.pending:
            sim.run(until=0.01)
        assert sim.now - began < 0.3
        sim.run(until=30)
    assert sim.scheduler.registry.items


def test_a_caller_that_waits_for_the_rate_is_polled_rarely():
    sim = Simulation(VirtualServer())
    sim.submit([f"text {i}" for i in range(300)], rates=RateSettings(None, 6_000))
    polls = 0
    poll = sim.scheduler.poll

    def counted(now):
        nonlocal polls
        polls += 1
        return poll(now)

    sim.scheduler.poll = counted
    sim.run()
    assert polls < 20 * sim.server.requests


# Callers with different limits

RATES = [
    NO_LIMITS,
    RateSettings(3, None),
    RateSettings(60, None),
    RateSettings(None, 500),
    RateSettings(None, 50_000),
    RateSettings(30, 9_000),
]
CALLS = st.lists(
    st.tuples(st.sampled_from(RATES), st.booleans(), st.integers(1, 60), st.integers(1, 400), st.floats(0, 40)),
    min_size=2,
    max_size=12,
)


# A searched rate, which grows when it is asked, let a request grow after the user's limit had been asked for it.
GROWS = [
    *[(NO_LIMITS, False, 1, 1, 0.0)] * 2,
    (NO_LIMITS, False, 9, 246, 4.0),
    (RateSettings(30, 9000), False, 44, 351, 22.0),
    (RateSettings(3, None), False, 5, 297, 40.0),
    (RateSettings(30, 9000), True, 54, 44, 0.0),
    (RateSettings(None, 50000), False, 17, 85, 40.0),
]


@example(calls=GROWS, seed=7, ratio=1.6, fails=True)
@given(calls=CALLS, seed=st.integers(0, 9), ratio=st.sampled_from([0.7, 1.0, 1.6]), fails=st.booleans())
@settings(max_examples=40, deadline=None)
def test_no_minute_has_more_than_the_strictest_caller_with_work_allows(calls, seed, ratio, fails):
    rng = random.Random(seed)
    sim = Simulation(VirtualServer(estimate_ratio=ratio), seed=seed)

    def fault(number: int) -> RateLimitError | UnavailableError | None:
        if rng.random() > 0.1:
            return None
        return rng.choice([RateLimitError("slow down"), UnavailableError("lost"), UnavailableError("full", status=503)])

    sim.server.fault = fault if fails else lambda number: None
    for i, (rates, is_query, n, size, pause) in enumerate(calls):
        sim.submit([f"{i} {j}" for j in range(n)], rates=rates, is_query=is_query, size=size, retries=20)
        sim.run(until=pause)
    sim.run()
    assert len(sim.finished) == len(calls)
    assert all(ticket.failed == {} for ticket in sim.finished)


@given(rpm=st.integers(1, 300), texts=st.integers(1, 400), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_no_minute_has_more_requests_than_the_user_allows(rpm, texts, seed):
    sim = Simulation(VirtualServer(), seed=seed)
    rng = random.Random(seed)
    for i in range(40):
        sim.submit([f"{i} {n}" for n in range(rng.randint(1, texts))], rates=RateSettings(rpm, None))
        sim.run(until=rng.random())
    sim.run()
    assert all(ticket.failed == {} for ticket in sim.finished)
    assert len(sim.finished) == 40
    assert per_minute(sim.server.times)[0] <= rpm


def test_the_strictest_limit_of_active_callers_applies_and_idle_callers_limit_no_other():
    sim = Simulation(VirtualServer())
    sim.submit(["a"], rates=RateSettings(1, None))
    sim.run()
    began = sim.now
    for i in range(20):
        sim.submit([f"free {i}"], is_query=True)
        sim.run()
    assert sim.now - began < 5
    sim.run(until=80)
    sim.submit(["b"], rates=RateSettings(1, None))
    sim.submit(["c"], rates=RateSettings(1, None))
    sim.submit(["free"], is_query=True)
    sim.run(until=5)
    assert len(sim.server.times) == 21 + 1


def test_what_others_sent_in_the_last_minute_counts_for_a_caller_with_a_limit():
    sim = Simulation(VirtualServer())
    sim.submit([f"text {i}" for i in range(2_000)])
    sim.run()
    sim.submit(["limited"], rates=RateSettings(None, 100_000))
    sim.run()
    assert 60 < sim.now - 100 < 62


def test_a_user_limit_is_kept_while_others_send_requests_in_between():
    sim = Simulation(VirtualServer())
    for i in range(6):
        sim.submit([f"limited {i}"], rates=RateSettings(2, None))
        sim.run(until=0.1)
        sim.submit([f"free {i}"], is_query=True)
        sim.submit([f"faster {i}"], rates=RateSettings(600, None))
        sim.run()
    assert all(ticket.failed == {} for ticket in sim.finished)
    assert sim.now - 100 >= 60 * (6 / 2 - 1)
    assert len(sim.server.times) <= 18


@pytest.mark.parametrize("rates", [RateSettings(1, None), RateSettings(None, 1), RateSettings(1, 1)])
def test_the_smallest_limits_are_respected(rates):
    sim = Simulation(VirtualServer())
    for i in range(3):
        sim.submit([f"text {i}"], size=1, rates=rates)
    sim.run()
    assert [ticket.failed for ticket in sim.finished] == [{}, {}, {}]
    assert sim.now >= 100 + 60


# Corrections


def test_an_impossible_bill_does_not_stop_the_model():
    sim = Simulation(VirtualServer(estimate_ratio=1e-9, per_token=0.0))
    sim.submit(["text"], rates=RateSettings(None, 1_000_000))
    sim.run()
    sim.submit(["another"], rates=RateSettings(None, 1_000_000))
    assert sim.run() < 120


def wait(limits: UserLimits, tokens: float, now: float) -> float:
    return limits.wait(tokens, now, is_query=True, backlog=Backlog(1, 1, tokens))


def test_a_bill_counts_at_the_time_of_its_request():
    limits = UserLimits()
    limits.enter(RateSettings(None, 1_000))
    limits.take(100, 0.0)
    limits.take(100, 30.0)
    limits.correct(100, 0.0, 900, 40.0)
    assert wait(limits, 900, 40.0) == pytest.approx(20, abs=1)
    limits.correct(100, 30.0, 50, 41.0)
    assert wait(limits, 50, 41.0) == 0.0


def test_a_request_that_did_not_reach_the_provider_is_given_back():
    sim = Simulation(VirtualServer())
    sim.submit(["warm up"])
    sim.run()
    error = UnavailableError("no connection")
    error.unsent = True
    sim.server.fault = lambda number: error if 2 <= number < 5 else None
    ticket = sim.submit(["text"], rates=RateSettings(2, None))
    assert sim.run() < 10
    assert (sim.server.requests, ticket.failed) == (5, {})


def test_the_share_of_a_process_is_at_least_one_a_minute():
    limits = UserLimits()
    limits.enter(RateSettings(10, 1_000))
    limits.share = 4
    assert limits.limits == RateSettings(2, 250)
    limits.share = 20
    assert limits.limits == RateSettings(1, 50)
    limits.take(200, 0.0)
    limits.share = 1
    assert wait(limits, 800, 1.0) == 0.0
    limits.share = 4
    assert wait(limits, 100, 1.0) > 50


def test_requests_have_the_size_of_a_paced_job_for_a_minute_after_they_waited_for_other_processes():
    limits, backlog = UserLimits(), Backlog(2, 1, 20_000.0)
    limits.enter(RateSettings(600, 200_000))
    assert (limits.max_tokens(0.0, backlog), limits.requests_are_limiting(0.0, backlog)) == (None, False)
    limits.on_shared_wait(0.0)
    assert (limits.max_tokens(59.0, backlog), limits.requests_are_limiting(59.0, backlog)) == (2_000, True)
    assert limits.requests_left(59.0) == 0.0
    assert (limits.max_tokens(61.0, backlog), limits.requests_are_limiting(61.0, backlog)) == (None, False)


# Through a server


def test_a_real_job_below_the_limit_is_not_spread_over_the_minute():
    server, texts = FakeServer(), [f"text {i}" for i in range(4_000)]
    tokens = fake_embedder(server).estimate(texts).tokens
    limited = fake_embedder(server, tokens_per_minute=3 * tokens // 2, requests_per_minute=1_000, deadline=30.0)
    limited.embed(texts)  # 40 s at an even pace
    assert len(server.received) > 10
