"""Servers that limit the requests in flight and answer a bare HTTP 429 beyond: slots, short queues, rate limits too."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compatible_servers import BusyInfinityServer
from support.embedders import numbered
from support.virtual import Simulation, VirtualServer

from embedkit_core import Embedder, ProviderError, RateLimitError, UnavailableError
from embedkit_core.common.types import Limits, LimitStatus, RateLimitStatus
from embedkit_core.engine.rate_limits.controller import RateController
from embedkit_core.engine.rate_limits.user_limits import Backlog


def embed(
    server: VirtualServer, *, n: int, texts: int, max_in_flight: int = 16, calls: int = 1, seed: int = 0
) -> float:
    """Return the seconds that calls of n texts in total take in requests of so many texts, all of them successful."""
    sim = Simulation(server, seed=seed)
    spec = sim.spec(limits=Limits(texts=texts, tokens=300_000, text_tokens=8192))
    tickets = []
    for call in range(calls):
        wanted = [f"{call} {i}" for i in range(n // calls)]
        tickets.append(sim.submit(wanted, spec=spec, max_in_flight=max_in_flight))
        sim.run(until=0.05)
    sim.run()
    assert [(ticket.pending, ticket.failed) for ticket in tickets] == [(0, {})] * calls
    assert set(server.billed.values()) == {1}
    return sim.now - 100


def overloaded() -> UnavailableError:
    return UnavailableError("currently overloaded", status=503)


jobs = st.fixed_dictionaries(
    {
        "n": st.sampled_from([100, 600]),
        "texts": st.sampled_from([1, 8, 32, 2048]),
        "max_in_flight": st.sampled_from([2, 16, 64]),
        "calls": st.sampled_from([1, 20]),
        "seed": st.integers(0, 99),
    }
)


@given(slots=st.integers(1, 12), latency=st.sampled_from([0.05, 0.3, 1.0]), job=jobs)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_text_is_lost_at_a_server_with_few_slots_and_429_is_as_fast_as_503(slots, latency, job):
    seconds = embed(VirtualServer(slots=slots, latency=latency), **job)
    assert seconds < 1.5 * embed(VirtualServer(slots=slots, latency=latency, overload=overloaded), **job) + 6


@given(queued=st.integers(0, 200), per_text=st.sampled_from([0.01, 0.05]), job=jobs)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_no_text_is_lost_at_a_server_with_a_short_queue_and_429_is_as_fast_as_503(queued, per_text, job):
    seconds = embed(VirtualServer(queued_texts=queued, per_text=per_text), **job)
    assert seconds < 1.5 * embed(VirtualServer(queued_texts=queued, per_text=per_text, overload=overloaded), **job) + 6


@given(slots=st.integers(1, 8), rate=st.integers(5_000, 50_000), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_a_server_may_limit_the_rate_and_the_requests_in_flight(slots, rate, seed):
    def server(tokens_per_second: float) -> VirtualServer:
        return VirtualServer(slots=slots, latency=0.1, tokens_per_second=tokens_per_second, burst=2 * rate)

    limited = server(rate)
    seconds = embed(limited, n=4_000, texts=64, seed=seed)
    by_rate = (limited.tokens - limited.burst) / rate
    by_slots = embed(server(1e9), n=4_000, texts=64, seed=seed)
    assert seconds < 1.2 * max(by_rate, by_slots) + 6
    assert limited.refused < 0.35 * limited.requests


def test_fewer_requests_are_sent_after_a_bare_429_and_more_after_the_server_recovers():
    server = VirtualServer(slots=3, latency=0.1)
    sim = Simulation(server)
    spec = sim.spec(limits=Limits(texts=8, tokens=300_000, text_tokens=8192))
    sim.submit([f"text {i}" for i in range(2_000)], spec=spec)
    sim.run()
    assert server.refused < 0.2 * server.requests
    server.slots, sim.peak = None, 0
    sim.submit([f"more {i}" for i in range(20_000)], spec=spec)
    sim.run()
    assert sim.peak == 16


def test_headers_with_quota_left_do_not_turn_a_limit_on_requests_in_flight_into_a_rate():
    def seconds(overload: Callable[[], ProviderError]) -> float:
        server = VirtualServer(
            slots=2, latency=0.1, tokens_per_second=1e6, burst=1e6, sends_headers=True, overload=overload
        )
        return embed(server, n=1_000, texts=8)

    def refused() -> RateLimitError:
        error = RateLimitError("too many parallel requests", status=429)
        error.rate_limits = RateLimitStatus(None, LimitStatus(1e6, 9e5, 0.1))
        return error

    assert seconds(refused) < 2 * seconds(overloaded)


def test_a_request_that_a_busy_server_refuses_takes_nothing_from_the_quota():
    controller = RateController(random.Random(0))
    quota = RateLimitStatus(LimitStatus(10.0, 10.0, 0.0), LimitStatus(1_000.0, 1_000.0, 0.0))
    first = controller.on_sent(10, 0.0, more_waits=True)
    controller.on_reply(first, 10, quota, 0.1)
    controller.on_returned(first, 16)
    for number in range(20):
        now = 1.0 + number / 100
        accepted, refused = (controller.on_sent(size, now, more_waits=True) for size in (1, 900))
        assert controller.on_failure(refused, RateLimitError("busy", status=429), now) == 0.0
        controller.on_returned(refused, 16)
        controller.on_reply(accepted, 1, quota, now)
        controller.on_returned(accepted, 16)
        assert controller.wait(900, now, is_query=False, backlog=Backlog()) == 0.0


@pytest.mark.parametrize("attempt", range(6))
def test_a_refused_text_waits_longer_with_each_failure_also_if_the_rate_is_known(attempt):
    """If the retries came at once, all of them would meet the same overload."""
    server = VirtualServer(tokens_per_second=30_000, burst=30_000)
    sim = Simulation(server, seed=attempt)
    sim.submit([f"text {i}" for i in range(4_000)])
    sim.run(until=4)
    refused_at = []

    def refuse_the_query(request_number: int) -> RateLimitError | None:
        if "unlucky" in sending[-1]:
            refused_at.append(sim.now)
            return RateLimitError("currently overloaded", status=429)
        return None

    sending: list[list[str]] = []
    answer = server.answer
    server.answer = lambda texts, sizes, now: (sending.append(texts), answer(texts, sizes, now))[1]
    server.fault = refuse_the_query
    query = sim.submit(["unlucky"], is_query=True)
    sim.run()
    assert isinstance(query.failed[0], RateLimitError)
    assert len(refused_at) == 1 + 6
    assert refused_at[-1] - refused_at[0] > 6


# Through the real SDK


@pytest.mark.parametrize("queued_texts", [None, 64])
def test_a_real_server_with_two_slots_or_a_short_queue_returns_all_vectors(queued_texts):
    texts = numbered(3_000)
    with BusyInfinityServer(queued_texts=queued_texts, work=0.005) as server:
        embedder = Embedder("infinity:any", base_url=server.base_url, cache=False, max_batch_texts=32)
        result = embedder.embed(texts)
        assert server.billed_texts == Counter(texts)
        refused = sum(exchange.status == 429 for exchange in server.requests)
        assert 0 < refused < 0.5 * len(server.requests)
    assert len(result.vectors) == len(texts)


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimitError), (503, UnavailableError)])
def test_the_error_after_the_last_retry_quotes_the_server(status, kind):
    with BusyInfinityServer(refuses_all=True, overload_status=status) as server:
        embedder = Embedder("infinity:any", base_url=server.base_url, cache=False, max_retries=0)
        with pytest.raises(kind, match="currently overloaded, please retry later") as caught:
            embedder.embed_query("text")
    assert caught.value.status == status
