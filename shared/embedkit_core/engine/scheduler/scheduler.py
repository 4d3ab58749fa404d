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
from embedkit_core.engine.scheduler.deadlines import deadline_error
from embedkit_core.engine.scheduler.dispatch import Dispatcher
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
from embedkit_core.engine.scheduler.items import Item, RequestSpec, Ticket, Waiter
from embedkit_core.engine.scheduler.log_events import LogThrottle
from embedkit_core.engine.scheduler.queues import Actions, Request, RequestQueue, RetryQueue
from embedkit_core.engine.scheduler.recent import RecentRow, RecentRows
from embedkit_core.engine.scheduler.registry import Registry
from embedkit_core.engine.scheduler.replies import check_width, complete_items, post_process, validate
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
        self.dispatcher = Dispatcher(most=in_flight, rng=rng)
        self.retry_queue = RetryQueue()
        self.ledger = BudgetLedger(request_poll)
        self.registry = Registry(self.dispatcher, self.ledger)
        self.log = LogThrottle()
        self._failures = FailurePolicy(retry or RetryPolicy(), rng, self.log)
        self._permitted: list[Request] = []
        self._actions = Actions()
        self._stopped = False

    # Events

    def submit(self, ticket: Ticket, lane: RequestSpec, wants: Sequence[tuple[bytes, str, int]], now: float) -> None:
        """Accept a ticket with its texts as (key, text, size): join what is under way, queue the rest."""
        queue = self.dispatcher.queue(lane)
        self.dispatcher.enter(ticket, queue, now)
        self.registry.deadlines.add(ticket)
        fresh: list[Item] = []
        finished: list[tuple[Item, RecentRow]] = []
        for index, (key, text, size) in enumerate(wants):
            item = self.registry.items.get(key)
            if item is None:
                item = self.registry.items[key] = Item(key, text, size, queue, is_query=ticket.is_query)
                if lane.truncating_body is not None and queue.is_surely_too_long(size):
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
        if lane.sorts_by_length:
            fresh.sort(key=lambda item: -item.size)
        self._take_recent(queue, finished)
        for own in dict.fromkeys([queue, *(item.queue for item in fresh)]) if lane.truncating_body else (queue,):
            own.enter([item for item in fresh if item.queue is own] if lane.truncating_body else fresh)
            if fresh and not ticket.is_query:
                own.plan_requests(self.dispatcher.free_slots(), now)
        self.registry.close_if_done(ticket)

    def _join(self, item: Item, ticket: Ticket, queue: RequestQueue, now: float) -> None:
        """Prepare an item under way for one more waiter: its budget, its priority, its rate limiter."""
        for one in self.ledger.retry(item):
            one.queue.enter([one])
        if ticket.is_query and not item.is_query:
            item.queue.promote(item)
        # A caller without a rate limiter must not wait for another caller's.
        if queue.spec.limiter is None and item.queue.spec.limiter is not None and item.queue.take_unsent(item):
            item.queue = queue
            queue.enter([item])
            if not item.is_query:
                queue.plan_requests(self.dispatcher.free_slots(), now)

    def _truncate_at_provider(self, item: Item) -> None:
        """Move an item to the queue whose requests ask the provider to truncate texts."""
        spec = item.queue.spec
        assert spec.truncating_body is not None
        limits = replace(spec.limits, text_tokens=None)
        twin = replace(
            spec,
            id=spec.id + b"cut",
            body=spec.truncating_body,
            truncating_body=None,
            provider_truncates=True,
            limits=limits,
        )
        item.is_truncated, item.queue = True, self.dispatcher.queue(twin)
        if spec.limits.text_tokens is not None:  # the provider reads, and bills, no more
            item.size = min(item.size, spec.limits.text_tokens)

    def withdraw(self, ticket: Ticket) -> None:
        """Remove a caller: texts that only it wanted are dropped if unsent, and completed and cached if sent."""
        if not ticket.closed:
            self.registry.close(ticket)
            self.registry.detach(ticket)

    def permit_granted(self, request: Request) -> None:
        """Accept the permit of a rate limiter for a request, which is sent by the next poll."""
        request.queue.awaiting_permit = None
        self._permitted.append(request)

    def limiter_failed(self, request: Request, error: ProviderError) -> None:
        """Accept the failure of a rate limiter: nothing of this queue can be sent."""
        request.queue.awaiting_permit = None
        self.registry.drop_unwanted(request.items)
        self._fail_queue(request, error)

    def replied(self, request: Request, reply: Reply, now: float) -> None:
        """Accept the reply to a request; its rows go to the caches before any caller sees them."""
        queue = request.queue
        try:
            validate(reply, len(request.items), queue.width, queue.spec)
            width, reply = reply.vectors.shape[1], post_process(reply, queue.spec)
        except BadReplyError as error:
            error.tokens = getattr(reply, "tokens", None)
            self.failed(request, error, now)
            return
        # The bill of truncated texts does not tell how many tokens the estimate stands for.
        queue.rate_controller.on_reply(
            request.sent, None if queue.spec.provider_truncates else reply.tokens, reply.rate_limits, now
        )
        queue.consecutive_refusals = queue.probe_failures = 0
        if not queue.verified:
            queue.verified = True
            queue.plan_requests(self.dispatcher.free_slots() + 1, now)
        queue.width = queue.width or width
        self.ledger.settle(request, reply.tokens)
        complete_items(request, reply)
        self._actions.commit.append(request)

    def failed(self, request: Request, error: ProviderError, now: float) -> None:
        """Accept the failure of a request, and do with each text what the failure policy decides."""
        self.ledger.settle_failure(request, error)
        request.queue.rate_controller.record_failure(error, now)
        delay = self._failures.back_off(request, error, now) if error.retryable else 0.0
        self.dispatcher.release_slot(request)
        items = self.registry.drop_unwanted(request.items)
        if items:
            bound = self.dispatcher.max_in_flight()
            decisions = self._failures.decide(request, items, error, until=now + delay, bound=bound, now=now)
            self._apply(decisions, request, error, now)

    def _apply(self, decisions: Sequence[Decision], request: Request, error: ProviderError, now: float) -> None:
        for decision in decisions:
            match decision:
                case Retry(items, until):
                    self._retry(items, until, request, error, now)
                case Requeue(items):
                    request.queue.enter(items, front=True)
                case Split(groups):
                    for group in groups:
                        request.queue.enter_group(group)
                case Truncate(item):
                    self._truncate_at_provider(item)
                    item.queue.enter([item], front=True)
                case Fail(items, reason):
                    self.registry.fail(items, reason)
                case FailQueue(reason):
                    self._fail_queue(request, reason)

    def _retry(self, items: list[Item], until: float, request: Request, error: ProviderError, now: float) -> None:
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
            self.log.retrying(request, error, len(again), until - now, now)

    def _fail_queue(self, request: Request, error: ProviderError) -> None:
        """Fail the texts of a request, and everything that waits in its queue."""
        queue = request.queue
        waiting = [item for item in self.registry.items.values() if item.queue is queue and item.location is not None]
        waiting += [item for item in self.retry_queue.items() if item.queue is queue]
        asking = queue.awaiting_permit.items if queue.awaiting_permit is not None else []
        self.registry.fail([item for item in [*request.items, *waiting, *asking] if item.waiters], error)

    def committed(self, request: Request) -> None:
        """Hand out the rows of a request that are in the caches, and free its slot."""
        if request.needs_another_commit():  # a caller with another cache joined while the rows were being written
            self._actions.commit.append(request)
            return
        self.dispatcher.release_slot(request)
        self.recent.add(request)
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
                if request.truncated[place]:
                    ticket.truncated.append(waiter.index)
            item.waiters.clear()
        for ticket, (wants, places, own) in handed.items():
            assert request.rows is not None
            whole = len(places) == len(request.rows)
            self._hand_out(ticket, wants, request.rows if whole else request.rows[places], paid=len(own))

    def owns(self, request: Request) -> bool:
        """Return True if a request is one of this scheduler's own."""
        return request.queue.busy is self.dispatcher.busy

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
        for ticket in self.registry.deadlines.expired(now):
            error = deadline_error(ticket)
            waiting = [w.index for item in ticket.items for w in item.waiters if w.ticket is ticket]
            self.registry.detach(ticket)
            for index in waiting:
                self.registry.give_up(ticket, index, copy.copy(error))

    def _return_to_queues(self, items: Iterable[Item]) -> None:
        """Put items at the front of their queues, one after the other; drop those without waiters."""
        for item in items:
            if item.waiters:
                item.queue.enter([item], front=True)
            else:
                self.registry.drop(item)

    @property
    def in_flight(self) -> int:
        """The number of requests that are in flight or being written to a cache."""
        return self.dispatcher.in_flight

    def _fill_slots(self, now: float) -> None:
        while True:
            self._return_to_queues(reversed(self.ledger.take_released()))
            request = self.dispatcher.next_request(now)
            if request is None:
                return
            if (
                request.queue.spec.limiter is not None
            ):  # it takes no slot before it has its permit: others need not wait
                request.queue.awaiting_permit = request
                self._actions.acquire.append(request)
            elif self._reserve(request):
                self._send(request, now)
            else:
                continue
            self.dispatcher.count_turn()

    def _send_permitted(self, now: float) -> None:
        """Send what the rate limiters have let pass, without the texts that have no waiter any more."""
        for request in list(self._permitted):
            if self.dispatcher.free_slots() and self.dispatcher.may_send(request, now):
                self._permitted.remove(request)
                request.items = self.registry.drop_unwanted(request.items)
                if request.items and self._reserve(request):
                    self._send(request, now)

    def _reserve(self, request: Request) -> bool:
        """Reserve budget for a request. Return True if any text is left to send."""
        funding = self.ledger.reserve(request)
        for waiter, refusal in funding.refused:
            self.registry.give_up(waiter.ticket, waiter.index, refusal)
        for item in funding.unwanted:
            self.registry.drop_piece(item)
        return bool(funding.paid)

    def _send(self, request: Request, now: float) -> None:
        self.dispatcher.take_slot(request, now)
        spec = request.queue.spec
        again = any(item.failures for item in request.items)
        request.payer.charge(Usage(requests=1, retries=int(again)))
        request.batch = Batch([item.text for item in request.items], spec.body, spec.timeout, spec.widths)
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
        ticket.coalesced += len(wants) - paid
        self.registry.close_if_done(ticket)

    def _take_recent(self, queue: RequestQueue, finished: list[tuple[Item, RecentRow]]) -> None:
        """Hand out rows that were completed since the caller looked, written first to a cache that lacks them."""
        for item, recent in finished:
            request = Request(queue, [], [item], recent.row[None, :], [recent.truncated])
            request.written_to = list(recent.caches)
            self.committed(request)
