"""The scheduler, in states that the state machine of the invariants rarely reaches, and its memory."""

import asyncio
import dataclasses
import random
import threading

import numpy as np
from support.embedders import cancel_in_flight, fake_embedder

from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import (
    BudgetError,
    EncodingRefusedError,
    RateLimitError,
    RequestTooLargeError,
    UnavailableError,
)
from embedkit_core.common.types import Limits, RateSettings, Reply
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
from embedkit_core.engine.runtime.process import engine
from embedkit_core.engine.scheduler.dispatch import MAX_CONSECUTIVE_QUERIES
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler
from embedkit_core.testing import FakeServer

SPEC = RequestSpec(b"wire", 60.0, Limits(), "truncate", "fake:model", 2, {})


class Harness:
    """A scheduler with a manual clock, and its callers."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(rng=random.Random(0))
        self.now = 0.0
        self.woken: list[Ticket] = []
        self.submit(["warm up"])
        self.answer(*self.poll())
        self.now = 10.0  # after the slow start of a server without rate-limit headers

    def submit(
        self,
        texts: list[str],
        *,
        is_query: bool = False,
        retries: int = 3,
        max_in_flight: int = 4,
        spec: RequestSpec = SPEC,
        budget: Budget | None = None,
    ) -> Ticket:
        rows = MatrixBuffer(len(texts), np.arange(len(texts)))
        ticket = Ticket(
            rows=rows,
            pending=len(texts),
            is_query=is_query,
            max_retries=retries,
            max_in_flight=max_in_flight,
            rates=RateSettings(),
            deadline=float("inf"),
            cache=None,
            billing=CallBilling([Meter()], None, [budget] if budget else []),
            wake=lambda: self.woken.append(ticket),
        )
        self.scheduler.submit(ticket, spec, [(text.encode(), text, 1) for text in texts], self.now)
        return ticket

    def poll(self) -> list[Request]:
        actions = self.scheduler.poll(self.now)
        for ticket in actions.wake:
            ticket.wake()
        self.wake_at = actions.wake_at
        self.asks = actions.acquire
        return actions.send

    def answer(self, *requests: Request) -> None:
        for request in requests:
            n = len(request.items)
            self.scheduler.replied(request, Reply(np.ones((n, 2), np.float32), n), self.now)
            for done in self.scheduler.poll(self.now).commit:
                self.scheduler.committed(done)
        self.next_sends = self.poll()


class Limiter:
    """A limiter that is never called here."""

    def acquire(self) -> None: ...


LIMITED = dataclasses.replace(SPEC, id=b"limited", limiter=LimiterAdapter(Limiter()))


def texts(request: Request) -> list[str]:
    return list(request.batch.texts)


def test_a_query_in_a_refused_bulk_request_is_sent_again_with_queries_only():
    harness = Harness()
    harness.submit(["a", "b", "c", "d"])
    (request,) = harness.poll()
    harness.submit(["c"], is_query=True)
    harness.scheduler.failed(request, RequestTooLargeError("too large"), harness.now)
    sent = harness.poll()
    assert texts(sent[0]) == ["c"]
    assert sorted(text for other in sent[1:] for text in texts(other)) == ["a", "b", "d"]


def test_a_query_gives_the_waiting_document_that_it_joins_priority():
    harness = Harness()
    busy = harness.submit([f"busy {i}" for i in range(4)], max_in_flight=1)
    (request,) = harness.poll()
    harness.submit(["a", "b"], max_in_flight=1)
    query = harness.submit(["b"], is_query=True, max_in_flight=1)
    harness.answer(request)
    assert busy in harness.woken
    assert texts(harness.next_sends[0]) == ["b"]
    assert query.items[0].is_query


def test_a_ticket_whose_texts_have_all_finished_meanwhile_is_served_at_once():
    harness = Harness()
    harness.scheduler.recent.lookups["a look-up"] = harness.scheduler.recent.sequence
    harness.submit(["a"])
    harness.answer(*harness.poll())
    late = harness.submit(["a"])
    del harness.scheduler.recent.lookups["a look-up"]
    assert harness.poll() == []
    assert late in harness.woken
    assert (late.coalesced, late.sent) == (1, 0)


def test_finished_rows_are_dropped_when_no_lookup_is_open():
    harness = Harness()
    harness.scheduler.recent.lookups["a look-up"] = harness.scheduler.recent.sequence
    harness.submit(["a"])
    harness.answer(*harness.poll())
    assert list(harness.scheduler.recent) == [b"a"]
    del harness.scheduler.recent.lookups["a look-up"]
    harness.poll()
    assert not list(harness.scheduler.recent)


def test_a_caller_that_joins_late_has_all_of_its_retries():
    harness = Harness()
    first = harness.submit(["a"], retries=1)
    (request,) = harness.poll()
    harness.scheduler.failed(request, UnavailableError("down", retry_after=1.0), harness.now)
    late = harness.submit(["a"], retries=1)
    for _ in range(2):
        harness.poll()
        harness.now = harness.wake_at
        (request,) = harness.poll()
        harness.scheduler.failed(request, UnavailableError("down", retry_after=1.0), harness.now)
    harness.poll()
    assert (list(first.failed), list(late.failed)) == ([0], [0])
    assert first in harness.woken
    assert late in harness.woken


def test_a_withdrawn_text_that_waits_for_a_retry_is_not_sent_again():
    harness = Harness()
    ticket = harness.submit(["a"])
    (request,) = harness.poll()
    harness.scheduler.failed(request, UnavailableError("down", retry_after=1.0), harness.now)
    harness.scheduler.withdraw(ticket)
    harness.now += 10.0
    assert harness.poll() == []
    assert not harness.scheduler.registry.items


def test_queues_of_different_specs_take_turns():
    harness = Harness()
    other = RequestSpec(b"other", 60.0, Limits(), "truncate", "fake:model", 2, {})
    harness.submit([f"one {i}" for i in range(600)], max_in_flight=1)
    harness.submit(["two"], spec=other, max_in_flight=1)
    spec_ids = []
    for _ in range(3):
        (request,) = harness.poll() or harness.next_sends
        spec_ids.append(request.queue.spec.id)
        harness.answer(request)
    assert b"other" in spec_ids[:2]


def test_documents_without_budget_do_not_use_the_turn_of_other_documents():
    harness = Harness()
    unpaid, paid = (dataclasses.replace(SPEC, id=name) for name in (b"poor", b"rich"))
    sent = []
    for n in range(2 * MAX_CONSECUTIVE_QUERIES):
        harness.submit([f"query {n}"], is_query=True, max_in_flight=1)
        if not sent:
            refused = harness.submit(["unpaid"], spec=unpaid, max_in_flight=1, budget=Budget(None, 1))
            harness.submit(["paid"], spec=paid, max_in_flight=1)
        (request,) = harness.poll() or harness.next_sends
        sent.append(request.queue.spec.id)
        harness.submit([f"query {n}, waiting"], is_query=True, max_in_flight=1)
        harness.answer(request)
    assert isinstance(refused.failed[0], BudgetError)
    assert sent.index(b"rich") == MAX_CONSECUTIVE_QUERIES


def test_a_permit_does_not_exceed_a_concurrency_limit_that_became_stricter():
    harness = Harness()
    harness.submit(["one"], max_in_flight=2)
    (in_flight,) = harness.poll()
    harness.submit(["limited"], max_in_flight=2, spec=LIMITED)
    assert harness.poll() == []
    (asked,) = harness.asks
    harness.submit(["strict"], max_in_flight=1)
    harness.scheduler.permit_granted(asked)
    assert harness.poll() == []
    harness.answer(in_flight)
    assert harness.next_sends == [asked]


def test_a_permit_that_arrives_during_a_pause_waits_for_its_end():
    harness = Harness()
    harness.submit(["limited"], spec=LIMITED)
    harness.poll()
    (asked,) = harness.asks
    harness.submit(["other"])
    (other,) = harness.poll()
    harness.scheduler.failed(other, RateLimitError("slow down", retry_after=7.0), harness.now)
    harness.scheduler.permit_granted(asked)
    assert harness.poll() == []
    assert harness.wake_at == 17.0
    harness.now += 7.0
    assert asked in harness.poll()


def test_a_permit_of_a_paused_model_does_not_delay_other_models():
    harness = Harness()
    other_model = dataclasses.replace(LIMITED, id=b"other", model="fake:other", limiter=LimiterAdapter(Limiter()))
    harness.submit(["limited"], spec=LIMITED)
    harness.submit(["other model"], spec=other_model)
    harness.poll()
    asked = {request.queue.spec.model: request for request in harness.asks}
    harness.submit(["refused"])
    (refused,) = harness.poll()
    harness.scheduler.failed(refused, RateLimitError("slow down", retry_after=7.0), harness.now)
    harness.scheduler.permit_granted(asked["fake:model"])
    harness.scheduler.permit_granted(asked["fake:other"])
    assert harness.poll() == [asked["fake:other"]]


def test_a_shared_bill_charges_no_budget_more_than_its_reservation():
    """Each text is estimated as one token; the bill is the highest possible."""
    harness = Harness()
    budgets = [Budget(None, 10), Budget(None, 100)]
    harness.submit(["x" * 10], budget=budgets[0])
    harness.submit(["y" * 100], budget=budgets[1])
    [request] = harness.poll()
    harness.scheduler.replied(request, Reply(np.ones((2, 2), np.float32), 110), harness.now)
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


def test_a_request_sent_again_comes_before_the_texts_that_waited_for_its_budget():
    harness = Harness()
    budget = Budget(None, 3)
    harness.submit(["aaa", "bbb"], budget=budget)
    (request,) = harness.poll()
    assert texts(request) == ["aaa"]  # the other waits: a token has at least one byte, and three are reserved
    harness.scheduler.failed(request, EncodingRefusedError("no base64"), harness.now)
    (again,) = harness.poll()
    assert texts(again) == ["aaa"]
