"""Dispatch: the queues with waiting texts, the bounds on requests in flight, and the next request. No I/O."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar
from weakref import WeakValueDictionary

from embedkit_core.engine.rate_limits.controller import RateController
from embedkit_core.engine.rate_limits.user_limits import Backlog
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request, RequestQueue
from embedkit_core.engine.scheduler.spreading import RequestSpreader

T = TypeVar("T")
LONG_WAIT_SECONDS = 10.0  # a longer wait for a quota in headers is logged
MAX_IDLE_QUEUES = 512  # whose learned limits and width are remembered
MAX_CONSECUTIVE_QUERIES = 7  # requests with queries while bulk waits; then bulk gets a slot
MIN_SPREAD_ROUNDS = 2  # requests that must wait, for each slot: the last round of a call is not delayed


class Dispatcher:
    """The queues of one account, and the choice of the next request.

    Attributes:
        in_flight: The requests that hold a slot: in flight or being committed.
        wake_at: The earliest time at which a delayed request may be sent; inf if none is delayed.
        long_waits: The queues that wait long for a quota in headers: the header and the seconds. Renewed by a poll.
        busy: The queues with waiting texts, in the order of their turn.
        spreader: Spreads bulk requests over time while queries wait long.
    """

    def __init__(self, *, max_in_flight: int | None, rng: random.Random) -> None:
        self.in_flight = 0
        self.wake_at = math.inf
        self.long_waits: dict[RequestQueue, tuple[str, float]] = {}
        self.busy: dict[RequestQueue, None] = {}
        self.spreader = RequestSpreader()
        self._max_in_flight = max_in_flight
        self._rng = rng
        self._queues: WeakValueDictionary[RequestSpec, RequestQueue] = WeakValueDictionary()
        self._rate_controllers: WeakValueDictionary[str, RateController] = WeakValueDictionary()
        self._recent_queues: dict[RequestQueue, None] = {}
        self._recent_controllers: dict[RateController, None] = {}
        self._bounds: Counter[int] = Counter()
        self._consecutive_queries = 0
        self._consecutive_after = 0

    def queue(self, spec: RequestSpec) -> RequestQueue:
        """Return the queue of a spec, created on first use."""
        queue = self._queues.get(spec)
        if queue is None:
            queue = self._queues[spec] = RequestQueue(spec, self.busy, self._rate_controller(spec.model))
        self._remember(self._recent_queues, queue)
        return queue

    def _rate_controller(self, model: str) -> RateController:
        controller = self._rate_controllers.get(model)
        if controller is None:
            controller = self._rate_controllers[model] = RateController(self._rng)
        self._remember(self._recent_controllers, controller)
        return controller

    def known_rate_controller(self, model: str) -> RateController | None:
        """Return the rate controller of a recently used model."""
        return self._rate_controllers.get(model)

    def by_rate_controller(self) -> dict[RateController, list[RequestQueue]]:
        """Return the queues of recently used models, grouped by their rate controller."""
        groups: dict[RateController, list[RequestQueue]] = {}
        for queue in list(self._queues.values()):
            groups.setdefault(queue.rate_controller, []).append(queue)
        return groups

    @staticmethod
    def _remember(recent: dict[T, None], used: T) -> None:
        """Keep the objects that were used last. Older ones live as long as items, requests or tickets refer to them."""
        recent.pop(used, None)
        recent[used] = None
        while len(recent) > MAX_IDLE_QUEUES:
            del recent[next(iter(recent))]

    # Bounds

    def enter(self, ticket: Ticket, queue: RequestQueue, now: float) -> None:
        """Apply the bounds of a caller with pending work."""
        ticket.submitted_at, ticket.rate_controller = now, queue.rate_controller
        self._bounds[ticket.max_in_flight] += 1
        queue.rate_controller.user_limits.enter(ticket.rates)

    def leave(self, ticket: Ticket) -> None:
        """Remove the bounds of a caller that has no pending work any more."""
        if ticket.rate_controller is not None:
            self._bounds[ticket.max_in_flight] -= 1
            ticket.rate_controller.user_limits.leave(ticket.rates)

    def max_in_flight(self) -> int:
        """Return how many requests may be in flight: the strictest bound of all callers with pending work."""
        bounds = (self.max_concurrency(), self._max_in_flight)
        return min((bound for bound in bounds if bound is not None), default=1)

    def max_concurrency(self) -> int | None:
        """Return the strictest `max_concurrency` of the callers with pending work; None if there is no such caller."""
        return min((bound for bound, callers in self._bounds.items() if callers > 0), default=None)

    def free_slots(self) -> int:
        """Return how many more requests may be sent now."""
        return max(0, self.max_in_flight() - self.in_flight)

    def take_slot(self, request: Request, now: float) -> None:
        """Occupy a slot for a request that is sent."""
        self.in_flight += 1
        request.queue.in_flight += 1
        controller = request.queue.rate_controller
        more_waits = any(queue.has_waiting for queue in self.busy if queue.rate_controller is controller)
        request.sent = controller.on_sent(request.size, now, more_waits=more_waits)

    def release_slot(self, request: Request) -> None:
        """Free the slot of a request; one that only commits recent rows has none."""
        if request.items:
            request.queue.rate_controller.on_returned(request.sent, self.max_in_flight())
            self.in_flight -= 1
            request.queue.in_flight -= 1

    def give_back_slot(self, request: Request, now: float) -> None:
        """Free the slot of a request that is not sent."""
        request.queue.rate_controller.on_unsent(request.sent, now)
        self.in_flight -= 1
        request.queue.in_flight -= 1

    # Turns

    def next_request(self, now: float) -> Request | None:
        """Return the next request; None if none may be sent now."""
        if not any(queue.count(is_query=True) for queue in self.busy):
            self.spreader.no_query_waits()  # the last one may have been cancelled
        elif not self.free_slots():
            self.spreader.query_waits(now)
        while self.free_slots():
            for queue in [queue for queue in self.busy if not queue.has_waiting]:
                del self.busy[queue]
            with_queries = [queue for queue in self.busy if queue.ready(is_query=True, now=now)]
            with_bulk = [queue for queue in self.busy if queue.ready(is_query=False, now=now)]
            times = [queue.outage.next_probe_at for queue in self.busy if not queue.verified]
            times += [queue.not_before(is_query=is_query) for queue in self.busy for is_query in (False, True)]
            bulk_waits, must_send_bulk = bool(with_bulk), self._consecutive_queries >= MAX_CONSECUTIVE_QUERIES
            if bulk_waits and not must_send_bulk and (bulk_at := self._bulk_not_before(now)) > now:
                with_bulk = []
                times.append(bulk_at)
            self.wake_at = min(self.wake_at, *(at for at in times if at > now), math.inf)
            is_query = bool(with_queries) and not (with_bulk and must_send_bulk)
            first, second = (with_queries, with_bulk) if is_query else (with_bulk, with_queries)
            chosen = self._first_ready(first, is_query=is_query, now=now)
            if chosen is None:  # the others may go ahead if they do not share a rate limit with the delayed ones
                is_query = not is_query
                delayed = {queue.rate_controller for queue in first}
                others = [queue for queue in second if queue.rate_controller not in delayed]
                chosen = self._first_ready(others, is_query=is_query, now=now)
            if chosen is None:
                return None
            self._consecutive_after = self._consecutive_queries + 1 if is_query and bulk_waits else 0
            group = chosen.take(is_query=is_query, free_slots=self.free_slots(), now=now)
            if group is not None:
                self.spreader.started(now, is_query=is_query)
                self.busy[chosen] = self.busy.pop(chosen, None)  # to the back, so that queues take turns
                return Request(chosen, group.items)
        return None

    def _bulk_not_before(self, now: float) -> float:
        """Return the time before which bulk leaves free slots to queries."""
        slots = self.max_in_flight()
        bulk_at = self.spreader.not_before(now, slots)
        if bulk_at <= now or sum(queue.backlog().requests for queue in self.busy) < MIN_SPREAD_ROUNDS * slots:
            return now
        return bulk_at

    def count_turn(self) -> None:
        """Count the turn of the last request. A request without budget is not counted, so that bulk loses no turn."""
        self._consecutive_queries = self._consecutive_after

    def _first_ready(self, queues: Iterable[RequestQueue], *, is_query: bool, now: float) -> RequestQueue | None:
        delayed: set[RateController] = set()
        for queue in queues:
            if queue.rate_controller in delayed:  # smaller requests must not starve a larger one
                continue
            size = 0
            if queue.rate_controller.limits_tokens:
                size = queue.next_size(is_query=is_query, free_slots=self.free_slots(), now=now)
            if self._has_rate(queue, size, now, is_query=is_query, backlog=queue.model_backlog()):
                return queue
            delayed.add(queue.rate_controller)
        return None

    def may_send(self, request: Request, now: float) -> bool:
        """Return True if the rate controller allows a request that has its rate limiter's permit."""
        backlog = self.backlog(request)
        return self._has_rate(request.queue, request.size, now, is_query=request.is_query, backlog=backlog)

    @staticmethod
    def backlog(request: Request) -> Backlog:
        """Return what waits on the model of a request that has left its queue, including the request."""
        tokens = request.size * request.queue.rate_controller.tokens_per_estimated
        return request.queue.model_backlog().plus(Backlog(1, 1, tokens))

    def _has_rate(self, queue: RequestQueue, size: int, now: float, *, is_query: bool, backlog: Backlog) -> bool:
        seconds = queue.rate_controller.wait(size, now, is_query=is_query, backlog=backlog)
        if seconds:
            self.wake_at = min(self.wake_at, now + seconds)
        if LONG_WAIT_SECONDS < seconds < math.inf:
            stated, header = queue.rate_controller.header_wait(size, now)
            if stated > LONG_WAIT_SECONDS:  # else it is the callers' own limit, or a pause
                self.long_waits[queue] = header, stated
        return not seconds
