"""Queries during a long call: requests are spread so that slots come free evenly."""

import itertools
import random
import statistics
from dataclasses import replace

import pytest
from support.virtual import LIMITS, Simulation, VirtualServer

from embedkit_core.engine.scheduler.dispatch import MAX_CONSECUTIVE_QUERIES, Dispatcher
from embedkit_core.engine.scheduler.spreading import RequestSpreader

LATENCY = 0.15
SLOTS = 4
PER_REQUEST = 8
TEXTS = PER_REQUEST * SLOTS * 40  # 40 rounds


def ingest(per_second=0.0, *, slots=SLOTS, texts=TEXTS, seed=0):
    """Return the seconds of an ingest, and those of the queries that arrive meanwhile, in request times."""
    sim, rng = Simulation(VirtualServer(latency=LATENCY, per_token=0.0), seed=seed), random.Random(seed)
    spec = sim.spec(limits=replace(LIMITS, texts=PER_REQUEST))
    sim.submit(["warm up"], is_query=True, max_in_flight=slots, spec=spec)
    sim.run()
    began, taken, ended = sim.now, [], []
    bulk = sim.submit([f"text {n}" for n in range(texts)], max_in_flight=slots, spec=spec)
    bulk.wake = lambda: ended.append(sim.now - began)

    def ask():
        if ended:
            return
        asked = sim.now
        query = sim.submit([f"query at {asked}"], is_query=True, max_in_flight=slots, spec=spec)
        query.wake = lambda: taken.append((sim.now - asked) / LATENCY)
        sim.at(sim.now + rng.expovariate(per_second), ask)

    if per_second:
        sim.at(began + rng.expovariate(per_second), ask)
    sim.run()
    return ended[0], taken


def test_queries_soon_find_a_free_slot_though_all_requests_take_equally_long():
    taken = [times for seed in range(5) for times in ingest(2.0, seed=seed)[1]]
    assert len(taken) > 40
    assert statistics.median(taken) < 1.3  # 1.5 if all slots come free together
    assert max(taken) <= 2.0 + 0.02  # a timer is late by up to a millisecond


def test_a_call_without_queries_is_not_delayed():
    assert ingest()[0] == pytest.approx(TEXTS / PER_REQUEST / SLOTS * LATENCY, rel=0.001)


@pytest.mark.parametrize("slots", [1, 2, 4, 16])
def test_spreading_delays_a_call_by_at_most_the_time_of_one_request(slots):
    took, taken = ingest(0.7, slots=slots)
    rounds = (TEXTS / PER_REQUEST + len(taken)) / slots
    assert rounds * LATENCY <= took * 1.001
    assert took <= (rounds + 2) * LATENCY + 0.05


def test_the_last_round_of_a_call_is_not_delayed():
    took, taken = ingest(20.0, texts=PER_REQUEST * SLOTS * 2)
    assert len(taken) > 0
    assert took <= 3.01 * LATENCY  # two rounds, and one for a query


def test_a_query_that_was_cancelled_while_it_waited_does_not_spread_requests():
    spreader = RequestSpreader()
    spreader.replied(LATENCY, is_query=False)
    spreader.query_waits(0.0)
    spreader.no_query_waits()
    spreader.started(LATENCY, is_query=True)
    assert spreader.not_before(LATENCY, SLOTS) == LATENCY
    spreader.query_waits(1.0)
    spreader.started(1.0 + LATENCY, is_query=True)
    assert spreader.not_before(1.0 + LATENCY, SLOTS) == pytest.approx(1.0 + LATENCY + LATENCY / SLOTS)


def test_bulk_that_is_spread_waits_behind_no_more_queries_than_other_bulk(monkeypatch):
    """Queries that arrive one by one could else take all slots that come free."""
    kinds = []
    take_slot = Dispatcher.take_slot

    def noted(self, request, now):
        kinds.append(request.is_query)
        take_slot(self, request, now)

    monkeypatch.setattr(Dispatcher, "take_slot", noted)
    ingest(300.0, slots=16)
    kinds = kinds[: len(kinds) - kinds[::-1].index(False)]  # until the last bulk request
    longest = max(len(list(run)) for is_query, run in itertools.groupby(kinds) if is_query)
    assert longest <= MAX_CONSECUTIVE_QUERIES
