"""The scheduler: a state machine that decides what is sent, when, and which caller gets which row. No I/O.

No thread, clock, socket or lock: events come in as calls with the time, decisions go out through `poll`. Its
invariants are numbered in CONTRIBUTING.md and proven by the Hypothesis state machine in tests/invariants.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from embedkit_core.common.errors import BadReplyError, ProviderError
from embedkit_core.common.types import Batch, Reply, Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.engine.scheduler.deadlines import too_late
from embedkit_core.engine.scheduler.dispatch import Turns
from embedkit_core.engine.scheduler.failures import (
    Decision,
    Fail,
    FailQueue,
    FailurePolicy,
    Requeue,
    Retry,
    Split,
    Truncate,
    exhausted,
)
from embedkit_core.engine.scheduler.funding import BudgetLedger
from embedkit_core.engine.scheduler.items import Item, Lane, Ticket, Waiter
from embedkit_core.engine.scheduler.log_events import Notes
from embedkit_core.engine.scheduler.queues import Actions, Flight, LaneQueue, Parked
from embedkit_core.engine.scheduler.recent import Recent, RecentRows
from embedkit_core.engine.scheduler.registry import Registry
from embedkit_core.engine.scheduler.replies import check, check_width, collect, finished
from embedkit_core.engine.scheduler.retry import RetryPolicy


class Scheduler:
    """Everything under way for one account.

    `registry` holds each text once, `recent` the rows that were completed a moment ago. `request_poll` is called when
    something may be sent again after another account's bill: call `poll` then.
    """

    def __init__(
        self,
        *,
        in_flight: int | None = None,
        rng: random.Random,
        retry: RetryPolicy | None = None,
        request_poll: Callable[[], object] = lambda: None,
    ) -> None:
        self.recent = RecentRows()
        self.dispatcher = Turns(most=in_flight, rng=rng)
        self.retry_queue = Parked()
        self.ledger = BudgetLedger(request_poll)
        self.registry = Registry(self.dispatcher, self.ledger)
        self.log = Notes()
        self._failures = FailurePolicy(retry or RetryPolicy(), rng, self.log)
        self._permitted: list[Flight] = []
        self._actions = Actions()
        self._stopped = False

    # Events

    def submit(self, ticket: Ticket, lane: Lane, wants: Sequence[tuple[bytes, str, int]], now: float) -> None:
        """Accept a ticket with its texts as (key, text, size): join what is under way, queue the rest."""
        queue = self.dispatcher.lane(lane)
        self.dispatcher.enter(ticket, queue, now)
        self.registry.deadlines.add(ticket)
        fresh: list[Item] = []
        finished: list[tuple[Item, Recent]] = []
        for index, (key, text, size) in enumerate(wants):
            item = self.registry.items.get(key)
            if item is None:
                item = self.registry.items[key] = Item(key, text, size, queue, urgent=ticket.urgent)
                if lane.cutting is not None and queue.is_surely_too_long(size):
                    self._truncate_at_provider(item)
                recent = self.recent.get(key)
                if recent is None:
                    fresh.append(item)
                else:
                    finished.append((item, recent))
            else:
                self._join(item, ticket, queue, now)
            item.waiters.append(Waiter(ticket, index, item.failures))
            if ticket.cache is not None and not any(cache is ticket.cache for cache in item.caches):
                item.caches.append(ticket.cache)
            ticket.items.append(item)
        if lane.sorts:
            fresh.sort(key=lambda item: -item.size)
        self._take_recent(queue, finished)
        for own in dict.fromkeys([queue, *(item.lane for item in fresh)]) if lane.cutting else (queue,):
            own.enter([item for item in fresh if item.lane is own] if lane.cutting else fresh)
            if fresh and not ticket.urgent:
                own.plan_job(self.dispatcher.free_slots(), now)
        self.registry.close_if_done(ticket)

    def _join(self, item: Item, ticket: Ticket, queue: LaneQueue, now: float) -> None:
        """Prepare an item under way for one more waiter: its budget, its priority, its rate limiter."""
        for one in self.ledger.retry(item):
            one.lane.enter([one])
        if ticket.urgent and not item.urgent:
            item.lane.promote(item)
        # A caller without a rate limiter must not wait for another caller's.
        if queue.lane.gate is None and item.lane.lane.gate is not None and item.lane.take_unsent(item):
            item.lane = queue
            queue.enter([item])
            if not item.urgent:
                queue.plan_job(self.dispatcher.free_slots(), now)

    def _truncate_at_provider(self, item: Item) -> None:
        """Move an item to the queue whose requests ask the provider to truncate texts."""
        spec = item.lane.lane
        assert spec.cutting is not None
        limits = replace(spec.limits, text_tokens=None)
        twin = replace(spec, wire_id=spec.wire_id + b"cut", wire=spec.cutting, cutting=None, cuts=True, limits=limits)
        item.cut, item.lane = True, self.dispatcher.lane(twin)
        if spec.limits.text_tokens is not None:  # the provider reads, and bills, no more
            item.size = min(item.size, spec.limits.text_tokens)

    def withdraw(self, ticket: Ticket) -> None:
        """Remove a caller: texts that only it wanted are dropped if unsent, and completed and cached if sent."""
        if not ticket.closed:
            self.registry.close(ticket)
            self.registry.detach(ticket)

    def permit_granted(self, request: Flight) -> None:
        """Accept the permit of a rate limiter for a request, which is sent by the next poll."""
        request.lane.asking = None
        self._permitted.append(request)

    def limiter_failed(self, request: Flight, error: ProviderError) -> None:
        """Accept the failure of a rate limiter: nothing of this queue can be sent."""
        request.lane.asking = None
        self.registry.drop_unwanted(request.items)
        self._fail_queue(request, error)

    def replied(self, request: Flight, reply: Reply, now: float) -> None:
        """Accept the reply to a request; its rows go to the caches before any caller sees them."""
        queue = request.lane
        try:
            check(reply, len(request.items), queue.width, queue.lane)
            width, reply = reply.vectors.shape[1], finished(reply, queue.lane)
        except BadReplyError as error:
            error.tokens = getattr(reply, "tokens", None)
            self.failed(request, error, now)
            return
        # The bill of truncated texts does not tell how many tokens the estimate stands for.
        queue.pace.answered(request.sent, None if queue.lane.cuts else reply.tokens, reply.headroom, now)
        queue.refused = queue.doubts = 0
        if not queue.proven:
            queue.proven = True
            queue.plan_job(self.dispatcher.free_slots() + 1, now)
        queue.width = queue.width or width
        self.ledger.settle(request, reply.tokens)
        collect(request, reply)
        self._actions.commit.append(request)

    def failed(self, request: Flight, error: ProviderError, now: float) -> None:
        """Accept the failure of a request, and do with each text what the failure policy decides."""
        self.ledger.settle_failure(request, error)
        request.lane.pace.note(error, now)
        delay = self._failures.back_off(request, error, now) if error.retryable else 0.0
        self.dispatcher.release(request)
        items = self.registry.drop_unwanted(request.items)
        if items:
            bound = self.dispatcher.bound()
            decisions = self._failures.decide(request, items, error, until=now + delay, bound=bound, now=now)
            self._apply(decisions, request, error, now)

    def _apply(self, decisions: Sequence[Decision], request: Flight, error: ProviderError, now: float) -> None:
        for decision in decisions:
            match decision:
                case Retry(items, until):
                    self._retry(items, until, request, error, now)
                case Requeue(items):
                    request.lane.enter(items, front=True)
                case Split(groups):
                    for group in groups:
                        request.lane.enter_group(group)
                case Truncate(item):
                    self._truncate_at_provider(item)
                    item.lane.enter([item], front=True)
                case Fail(items, reason):
                    self.registry.fail(items, reason)
                case FailQueue(reason):
                    self._fail_queue(request, reason)

    def _retry(self, items: list[Item], until: float, request: Flight, error: ProviderError, now: float) -> None:
        """Schedule the next try of items, without the waiters whose retries are used up."""
        again: list[Item] = []
        for item in items:
            item.failures += 1
            for waiter in exhausted(item):
                item.waiters.remove(waiter)
                self.registry.give_up(waiter.ticket, waiter.index, copy.copy(error))
            if item.waiters:
                again.append(item)
            else:
                self.registry.drop_piece(item)
        if again:
            self.retry_queue.add(again, until=until)
            self.log.failed(request, error, len(again), until - now, now)

    def _fail_queue(self, request: Flight, error: ProviderError) -> None:
        """Fail the texts of a request, and everything that waits in its queue."""
        queue = request.lane
        waiting = [item for item in self.registry.items.values() if item.lane is queue and item.home is not None]
        waiting += [item for item in self.retry_queue.items() if item.lane is queue]
        asking = queue.asking.items if queue.asking is not None else []
        self.registry.fail([item for item in [*request.items, *waiting, *asking] if item.waiters], error)

    def committed(self, request: Flight) -> None:
        """Hand out the rows of a request that are in the caches, and free its slot."""
        if request.late():  # a caller with another cache joined while the rows were being written
            self._actions.commit.append(request)
            return
        self.dispatcher.release(request)
        self.recent.note(request)
        assert request.rows is not None or not request.done
        handed: dict[Ticket, tuple[list[int], list[int], list[int]]] = {}
        for place, item in enumerate(request.done):
            self.registry.forget(item)
            for waiter in item.waiters:
                ticket = waiter.ticket
                wants, places, own = handed.setdefault(ticket, ([], [], []))
                wants.append(waiter.index)
                places.append(place)
                if ticket is item.payer:
                    own.append(place)
                if request.flags[place]:
                    ticket.truncated.append(waiter.index)
            item.waiters.clear()
        for ticket, (wants, places, own) in handed.items():
            assert request.rows is not None
            whole = len(places) == len(request.rows)
            self._hand_out(ticket, wants, request.rows if whole else request.rows[places], paid=len(own))

    def owns(self, request: Flight) -> bool:
        """Return True if a request is one of this scheduler's own."""
        return request.lane.busy is self.dispatcher.busy

    def stop(self) -> None:
        """Start nothing any more; replies to what is in flight are still accepted."""
        self._stopped = True

    # Decisions

    def poll(self, now: float) -> Actions:
        """Fill the free slots. Return what there is to do since the last call."""
        self._expire(now)
        self._return_to_queues(self.retry_queue.due(now))
        self.dispatcher.wake_at = math.inf
        if not self._stopped:
            self._send_permitted(now)
            self._fill_slots(now)
        self.recent.forget()
        actions, self._actions = self._actions, Actions()
        actions.wake, self.registry.completed = self.registry.completed, []
        times = [*self.retry_queue.next_due(), *self.registry.deadlines.next_due(), self.dispatcher.wake_at]
        actions.wake_at = min((at for at in times if at < math.inf), default=None)
        return actions

    def _expire(self, now: float) -> None:
        """Fail the texts of callers whose deadline has passed, and drop what only they wanted."""
        for ticket in self.registry.deadlines.passed(now):
            error = too_late(ticket)
            waiting = [w.index for item in ticket.items for w in item.waiters if w.ticket is ticket]
            self.registry.detach(ticket)
            for index in waiting:
                self.registry.give_up(ticket, index, copy.copy(error))

    def _return_to_queues(self, items: Iterable[Item]) -> None:
        """Put items at the front of their queues, one after the other; drop those without waiters."""
        for item in items:
            if item.waiters:
                item.lane.enter([item], front=True)
            else:
                self.registry.drop(item)

    @property
    def in_flight(self) -> int:
        """The number of requests that are in flight or being written to a cache."""
        return self.dispatcher.in_flight

    def _fill_slots(self, now: float) -> None:
        while True:
            self._return_to_queues(reversed(self.ledger.take_released()))
            request = self.dispatcher.next_flight(now)
            if request is None:
                return
            if request.lane.lane.gate is not None:  # it takes no slot before it has its permit: others need not wait
                request.lane.asking = request
                self._actions.acquire.append(request)
            elif self._reserve(request):
                self._send(request, now)
            else:
                continue
            self.dispatcher.took_turn()

    def _send_permitted(self, now: float) -> None:
        """Send what the rate limiters have let pass, without the texts that have no waiter any more."""
        for request in list(self._permitted):
            if self.dispatcher.free_slots() and self.dispatcher.may_go(request, now):
                self._permitted.remove(request)
                request.items = self.registry.drop_unwanted(request.items)
                if request.items and self._reserve(request):
                    self._send(request, now)

    def _reserve(self, request: Flight) -> bool:
        """Reserve budget for a request. Return True if any text is left to send."""
        funding = self.ledger.reserve(request)
        for waiter, refusal in funding.refused:
            self.registry.give_up(waiter.ticket, waiter.index, refusal)
        for item in funding.unwanted:
            self.registry.drop_piece(item)
        return bool(funding.paid)

    def _send(self, request: Flight, now: float) -> None:
        self.dispatcher.depart(request, now)
        spec = request.lane.lane
        again = any(item.failures for item in request.items)
        request.payer.charge(Usage(requests=1, retries=int(again)))
        request.batch = Batch([item.text for item in request.items], spec.wire, spec.timeout, spec.widths)
        self._actions.send.append(request)

    # Rows

    def _hand_out(self, ticket: Ticket, wants: list[int], vectors: Vectors, *, paid: int) -> None:
        if ticket.closed:
            return
        try:
            check_width(vectors, ticket)
        except BadReplyError as error:
            for want in wants:
                self.registry.give_up(ticket, want, copy.copy(error))
            return
        ticket.rows.put_wants(wants, vectors)
        ticket.pending -= len(wants)
        ticket.sent += paid
        ticket.joined += len(wants) - paid
        self.registry.close_if_done(ticket)

    def _take_recent(self, queue: LaneQueue, finished: list[tuple[Item, Recent]]) -> None:
        """Hand out rows that were completed since the caller looked, written first to a cache that lacks them."""
        for item, recent in finished:
            request = Flight(queue, [], [item], recent.row[None, :], [recent.truncated])
            request.kept = list(recent.caches)
            self.committed(request)
