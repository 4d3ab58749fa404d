"""The scheduler, driven by hand through what the state machine of the laws meets only now and then."""

import asyncio
import dataclasses
import random
import threading

import numpy as np
from support.embedders import cancel_in_flight, fake_embedder

from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import BudgetError, RateLimitError, RequestTooLargeError, UnavailableError
from embedkit_core.common.types import Limits, Reply
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.rate_limits.user_limits import RateSettings
from embedkit_core.engine.runtime.process import engine
from embedkit_core.engine.scheduler.dispatch import MAX_CONSECUTIVE_QUERIES
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler
from embedkit_core.testing import FakeServer

LANE = RequestSpec(b"wire", 60.0, Limits(), "truncate", "fake:model", 2, {})


class Desk:
    """A scheduler with its clock, and callers at it."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(rng=random.Random(0))
        self.now = 0.0
        self.woken: list[Ticket] = []
        self.submit(["warm up"])
        self.answer(*self.poll())
        self.now = 10.0  # a server that tells no limits is not met with a burst, and is known by now

    def submit(
        self,
        texts: list[str],
        *,
        urgent: bool = False,
        retries: int = 3,
        bound: int = 4,
        lane: RequestSpec = LANE,
        budget: Budget | None = None,
    ) -> Ticket:
        rows = MatrixBuffer(len(texts), np.arange(len(texts)))
        ticket = Ticket(
            rows=rows,
            pending=len(texts),
            is_query=urgent,
            max_retries=retries,
            max_in_flight=bound,
            rates=RateSettings(),
            deadline=float("inf"),
            cache=None,
            billing=CallBilling([Meter()], None, [budget] if budget else []),
            wake=lambda: self.woken.append(ticket),
        )
        self.scheduler.submit(ticket, lane, [(text.encode(), text, 1) for text in texts], self.now)
        return ticket

    def poll(self) -> list[Request]:
        step = self.scheduler.poll(self.now)
        for ticket in step.wake:
            ticket.wake()
        self.wake_at = step.wake_at
        self.asks = step.acquire
        return step.send

    def answer(self, *flights: Request) -> None:
        for request in flights:
            n = len(request.items)
            self.scheduler.replied(request, Reply(np.ones((n, 2), np.float32), n), self.now)
            for done in self.scheduler.poll(self.now).commit:
                self.scheduler.committed(done)
        self.next_sends = self.poll()


class Limiter:
    """Asked by the shell, which is not here."""

    def acquire(self) -> None: ...


LIMITED = dataclasses.replace(LANE, id=b"limited", limiter=LimiterAdapter(Limiter()))


def texts(request: Request) -> list[str]:
    return list(request.batch.texts)


def test_a_query_in_a_refused_bulk_request_is_sent_again_with_queries_only():
    desk = Desk()
    desk.submit(["a", "b", "c", "d"])
    (request,) = desk.poll()
    desk.submit(["c"], urgent=True)
    desk.scheduler.failed(request, RequestTooLargeError("too large"), desk.now)
    sent = desk.poll()
    assert texts(sent[0]) == ["c"]
    assert sorted(text for other in sent[1:] for text in texts(other)) == ["a", "b", "d"]


def test_a_query_gives_the_waiting_document_that_it_joins_priority():
    desk = Desk()
    busy = desk.submit([f"busy {i}" for i in range(4)], bound=1)
    (request,) = desk.poll()
    desk.submit(["a", "b"], bound=1)
    query = desk.submit(["b"], urgent=True, bound=1)
    desk.answer(request)
    assert busy in desk.woken
    assert texts(desk.next_sends[0]) == ["b"]
    assert query.items[0].is_query


def test_a_ticket_whose_texts_have_all_finished_meanwhile_is_served_at_once():
    desk = Desk()
    desk.scheduler.recent.lookups["a look-up"] = desk.scheduler.recent.sequence
    desk.submit(["a"])
    desk.answer(*desk.poll())
    late = desk.submit(["a"])
    del desk.scheduler.recent.lookups["a look-up"]
    assert desk.poll() == []
    assert late in desk.woken
    assert (late.coalesced, late.sent) == (1, 0)


def test_finished_rows_are_dropped_when_no_lookup_is_open():
    desk = Desk()
    desk.scheduler.recent.lookups["a look-up"] = desk.scheduler.recent.sequence
    desk.submit(["a"])
    desk.answer(*desk.poll())
    assert list(desk.scheduler.recent) == [b"a"]
    del desk.scheduler.recent.lookups["a look-up"]
    desk.poll()
    assert not list(desk.scheduler.recent)


def test_a_caller_that_joins_late_has_all_of_its_retries():
    desk = Desk()
    first = desk.submit(["a"], retries=1)
    (request,) = desk.poll()
    desk.scheduler.failed(request, UnavailableError("down", retry_after=1.0), desk.now)
    late = desk.submit(["a"], retries=1)
    for _ in range(2):
        desk.poll()
        desk.now = desk.wake_at
        (request,) = desk.poll()
        desk.scheduler.failed(request, UnavailableError("down", retry_after=1.0), desk.now)
    desk.poll()
    assert (list(first.failed), list(late.failed)) == ([0], [0])
    assert first in desk.woken
    assert late in desk.woken


def test_a_withdrawn_text_that_waits_for_a_retry_is_not_sent_again():
    desk = Desk()
    ticket = desk.submit(["a"])
    (request,) = desk.poll()
    desk.scheduler.failed(request, UnavailableError("down", retry_after=1.0), desk.now)
    desk.scheduler.withdraw(ticket)
    desk.now += 10.0
    assert desk.poll() == []
    assert not desk.scheduler.registry.items


def test_queues_of_different_specs_take_turns():
    desk = Desk()
    other = RequestSpec(b"other", 60.0, Limits(), "truncate", "fake:model", 2, {})
    desk.submit([f"one {i}" for i in range(600)], bound=1)
    desk.submit(["two"], lane=other, bound=1)
    lanes = []
    for _ in range(3):
        (request,) = desk.poll() or desk.next_sends
        lanes.append(request.queue.spec.id)
        desk.answer(request)
    assert b"other" in lanes[:2]


def test_documents_without_budget_do_not_use_the_turn_of_other_documents():
    desk = Desk()
    poor, rich = (dataclasses.replace(LANE, id=name) for name in (b"poor", b"rich"))
    sent = []
    for n in range(2 * MAX_CONSECUTIVE_QUERIES):
        desk.submit([f"query {n}"], urgent=True, bound=1)
        if not sent:
            refused = desk.submit(["unpaid"], lane=poor, bound=1, budget=Budget(None, 1))
            desk.submit(["paid"], lane=rich, bound=1)
        (request,) = desk.poll() or desk.next_sends
        sent.append(request.queue.spec.id)
        desk.submit([f"query {n}, waiting"], urgent=True, bound=1)
        desk.answer(request)
    assert isinstance(refused.failed[0], BudgetError)
    assert sent.index(b"rich") == MAX_CONSECUTIVE_QUERIES


def test_a_permit_does_not_exceed_a_concurrency_limit_that_became_stricter():
    desk = Desk()
    desk.submit(["one"], bound=2)
    (flying,) = desk.poll()
    desk.submit(["limited"], bound=2, lane=LIMITED)
    assert desk.poll() == []
    (asked,) = desk.asks
    desk.submit(["strict"], bound=1)
    desk.scheduler.permit_granted(asked)
    assert desk.poll() == []
    desk.answer(flying)
    assert desk.next_sends == [asked]


def test_a_permit_that_arrives_during_a_pause_waits_for_its_end():
    desk = Desk()
    desk.submit(["limited"], lane=LIMITED)
    desk.poll()
    (asked,) = desk.asks
    desk.submit(["other"])
    (other,) = desk.poll()
    desk.scheduler.failed(other, RateLimitError("slow down", retry_after=7.0), desk.now)
    desk.scheduler.permit_granted(asked)
    assert desk.poll() == []
    assert desk.wake_at == 17.0
    desk.now += 7.0
    assert asked in desk.poll()


def test_a_permit_of_a_paused_model_does_not_delay_other_models():
    desk = Desk()
    other_model = dataclasses.replace(LIMITED, id=b"other", model="fake:other", limiter=LimiterAdapter(Limiter()))
    desk.submit(["limited"], lane=LIMITED)
    desk.submit(["other model"], lane=other_model)
    desk.poll()
    asked = {request.queue.spec.model: request for request in desk.asks}
    desk.submit(["refused"])
    (refused,) = desk.poll()
    desk.scheduler.failed(refused, RateLimitError("slow down", retry_after=7.0), desk.now)
    desk.scheduler.permit_granted(asked["fake:model"])
    desk.scheduler.permit_granted(asked["fake:other"])
    assert desk.poll() == [asked["fake:other"]]


def test_a_shared_bill_charges_no_budget_more_than_its_reservation():
    """All texts are one token by their estimate; the bill is the most that it can be."""
    desk = Desk()
    budgets = [Budget(None, 10), Budget(None, 100)]
    desk.submit(["x" * 10], budget=budgets[0])
    desk.submit(["y" * 100], budget=budgets[1])
    [request] = desk.poll()
    desk.scheduler.replied(request, Reply(np.ones((2, 2), np.float32), 110), desk.now)
    assert [budget.spent_tokens for budget in budgets] == [10, 100]


# Memory of a long-running engine


def test_a_new_request_spec_for_every_call_does_not_accumulate():
    server = FakeServer()
    for i in range(1200):
        fake_embedder(server, provider_options={"user": str(i)}).embed(["one"])
    scheduler = engine().account(fake_embedder(server).provider).scheduler
    assert len(scheduler.dispatcher._queues) <= 513
    assert len(scheduler.dispatcher.busy) <= 2


def test_withdrawn_texts_do_not_stay_in_the_queues():
    server = FakeServer()
    embedder = fake_embedder(server, max_concurrency=1)
    embedder.embed(["warm up"])
    server.hold()

    asyncio.run(cancel_in_flight(embedder, server, [f"text {i}" for i in range(5000)], 2))
    account = engine().account(embedder.provider)
    seen = threading.Event()
    engine().call(account, seen.set)
    assert seen.wait(10)
    assert all(len(queue._bulk) <= 64 for queue in account.scheduler.dispatcher._queues.values())
    server.release()
