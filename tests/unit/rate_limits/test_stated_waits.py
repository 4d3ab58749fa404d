"""Long waits that a provider states in the headers of an accepted request."""

import logging

import pytest
from support.embedders import openai_embedder
from support.openai_server import OpenAIServer
from support.virtual import Simulation, VirtualServer

from embedkit_core import TimedOutError
from embedkit_core.common.types import LimitStatus, RateLimitStatus, RateSettings

DAY = 86_400.0


def exhausted(unit: str) -> RateLimitStatus:
    return RateLimitStatus(**{unit: LimitStatus(10.0, 0.0, DAY)})


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_headers_that_ask_for_a_day_are_tested_by_one_request_after_two_minutes(unit):
    sim = Simulation(VirtualServer())
    sim.server.rate_limit_status = lambda now: exhausted(unit)
    sim.submit(["warm up"])
    sim.run()
    tickets = [sim.submit([f"text {i}"], spec=sim.spec(bytes([i]))) for i in range(3)]
    sim.run(until=119)
    assert sim.server.requests == 1
    sim.run(until=11)
    assert sim.server.requests == 2
    sim.server.rate_limit_status = lambda now: RateLimitStatus(**{unit: LimitStatus(1_000.0, 900.0, 1.0)})
    sim.run(until=130)
    assert sim.server.requests == 4
    assert all((ticket.pending, ticket.failed) == (0, {}) for ticket in tickets)


def test_a_long_wait_is_logged_with_the_name_of_the_header():
    sim = Simulation(VirtualServer())
    sim.server.rate_limit_status = lambda now: exhausted("tokens")
    sim.submit(["warm up"])
    sim.run()
    ticket = sim.submit(["text"])
    sim.run(until=1)
    assert [event.text for event in ticket.log_events] == [
        "fake:model: Waiting 120 s for a quota: the header x-ratelimit-remaining-tokens shows too little left"
    ]


@pytest.mark.parametrize("rates", [RateSettings(), RateSettings(requests_per_minute=2)])
def test_short_waits_and_limits_of_the_user_are_not_logged_as_a_quota(rates):
    sim = Simulation(VirtualServer(tokens_per_second=1_000, burst=20_000, sends_headers=True))
    ticket = sim.submit([f"text {i}" for i in range(500)], rates=rates)
    sim.run()
    assert (ticket.pending, list(ticket.log_events)) == (0, [])


def test_the_caller_logs_it_while_it_waits(caplog):
    caplog.set_level(logging.INFO, logger="embedkit_core")
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "24h"}
    with OpenAIServer(requests_per_minute=100, headers=headers) as server:
        embedder = openai_embedder(server, deadline=0.5)
        embedder.embed_query("first")
        with pytest.raises(TimedOutError):
            embedder.embed_query("second")
        assert len(server.requests) == 1
    assert [line for line in caplog.messages if "x-ratelimit-remaining-requests" in line]
