"""Whose turn it is: the lanes with work, the bounds on what is in flight, and which request goes next. Pure."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar
from weakref import WeakValueDictionary

from embedkit_core.engine.rate_limits.controller import RateController
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request, RequestQueue

MAX_IDLE_QUEUES = 512  # idle ones remember limits and that they have answered before; more are not worth their memory
T = TypeVar("T")
MAX_CONSECUTIVE_QUERIES = 7  # while bulk waits; then it gets a slot


class Dispatcher:
    """The lanes of one account, and which of them may send.

    `wake_at` is the time when a request may go out that had to wait for its model's pace.
    """

    def __init__(self, *, most: int | None, rng: random.Random) -> None:
        self.in_flight = 0
        self.wake_at = math.inf
        self.busy: dict[RequestQueue, None] = {}
        self._max_in_flight = most
        self._rng = rng
        self._queues: WeakValueDictionary[RequestSpec, RequestQueue] = WeakValueDictionary()
        self._rate_controllers: WeakValueDictionary[str, RateController] = WeakValueDictionary()
        self._recent_queues: dict[RequestQueue, None] = {}
        self._recent_controllers: dict[RateController, None] = {}
        self._bounds: Counter[int] = Counter()
        self._consecutive_queries = 0
        self._consecutive_after = 0

    def queue(self, lane: RequestSpec) -> RequestQueue:
        """Give the queue of a lane, forgetting idle ones where somebody makes a new lane for each call."""
        queue = self._queues.get(lane)
        if queue is None:
            queue = self._queues[lane] = RequestQueue(lane, self.busy, self._rate_controller(lane.model))
        self._remember(self._recent_queues, queue)
        return queue

    def _rate_controller(self, model: str) -> RateController:
        pace = self._rate_controllers.get(model)
        if pace is None:
            pace = self._rate_controllers[model] = RateController(self._rng)
        self._remember(self._recent_controllers, pace)
        return pace

    def known_rate_controller(self, model: str) -> RateController | None:
        """Give the pace of a model that was used lately."""
        return self._rate_controllers.get(model)

    def by_rate_controller(self) -> dict[RateController, list[RequestQueue]]:
        """Give the lanes of each model that was used lately."""
        found: dict[RateController, list[RequestQueue]] = {}
        for queue in list(self._queues.values()):
            found.setdefault(queue.rate_controller, []).append(queue)
        return found

    @staticmethod
    def _remember(kept: dict[T, None], thing: T) -> None:
        """Keep what was used last; what is older is kept by those who still use it: texts, requests and callers."""
        kept.pop(thing, None)
        kept[thing] = None
        while len(kept) > MAX_IDLE_QUEUES:
            del kept[next(iter(kept))]

    # Bounds

    def enter(self, ticket: Ticket, queue: RequestQueue, now: float) -> None:
        """Let a caller with work bound what is sent."""
        ticket.rate_controller = queue.rate_controller
        self._bounds[ticket.max_in_flight] += 1
        queue.rate_controller.user_limits.enter(ticket.rates, now)

    def leave(self, ticket: Ticket) -> None:
        """Let a caller without work bind nobody."""
        if ticket.rate_controller is not None:
            self._bounds[ticket.max_in_flight] -= 1
            ticket.rate_controller.user_limits.leave(ticket.rates)

    def max_in_flight(self) -> int:
        """Give how many requests may be in flight: the strictest bound among callers with work."""
        bounds = [b for b, n in self._bounds.items() if n > 0]
        if self._max_in_flight is not None:
            bounds.append(self._max_in_flight)
        return min(bounds, default=1)

    def free_slots(self) -> int:
        """Give how many more requests may be sent now."""
        return max(0, self.max_in_flight() - self.in_flight)

    def take_slot(self, request: Request, now: float) -> None:
        """Take a slot for a request that goes out."""
        self.in_flight += 1
        request.queue.in_flight += 1
        pace = request.queue.rate_controller
        more_waits = any(queue.has_waiting for queue in self.busy if queue.rate_controller is pace)
        request.sent = pace.on_sent(request.size, now, more_waits=more_waits)

    def release_slot(self, request: Request) -> None:
        """Free the slot of a request; rows that are only being kept hold none."""
        if request.items:
            request.queue.rate_controller.on_returned(request.sent, self.max_in_flight())
            self.in_flight -= 1
            request.queue.in_flight -= 1

    # Turns

    def next_request(self, now: float) -> Request | None:
        """Give the request that goes next; None where none may go now."""
        while self.free_slots():
            for queue in [queue for queue in self.busy if not queue.has_waiting]:
                del self.busy[queue]
            urgent = [q for q in self.busy if q.ready(urgent=True)]
            bulk = [q for q in self.busy if q.ready(urgent=False)]
            queries = bool(urgent) and not (bulk and self._consecutive_queries >= MAX_CONSECUTIVE_QUERIES)
            first, second = (urgent, bulk) if queries else (bulk, urgent)
            chosen = self._first_ready(first, urgent=queries, now=now)
            if chosen is None:  # the others may go ahead where they use up nothing of what these wait for
                queries = not queries
                waiting = {q.rate_controller for q in first}
                chosen = self._first_ready(
                    [q for q in second if q.rate_controller not in waiting], urgent=queries, now=now
                )
            if chosen is None:
                return None
            self._consecutive_after = self._consecutive_queries + 1 if queries and bulk else 0
            group = chosen.take(urgent=queries, free_slots=self.free_slots(), now=now)
            if group is not None:
                self.busy[chosen] = self.busy.pop(chosen, None)  # to the back, so that lanes take turns
                return Request(chosen, group.items)
        return None

    def count_turn(self) -> None:
        """Count the last turn; one whose request was not paid for is not, so that bulk loses none by it."""
        self._consecutive_queries = self._consecutive_after

    def _first_ready(self, queues: Iterable[RequestQueue], *, urgent: bool, now: float) -> RequestQueue | None:
        waiting: set[RateController] = set()
        for queue in queues:
            if queue.rate_controller in waiting:  # smaller requests must not use up what a larger one waits for
                continue
            size = 0
            if queue.rate_controller.limits_tokens:
                size = queue.next_size(urgent=urgent, free_slots=self.free_slots(), now=now)
            if self._has_rate(queue, size, now):
                return queue
            waiting.add(queue.rate_controller)
        return None

    def may_send(self, request: Request, now: float) -> bool:
        """Tell whether a request that has its rate limiter's permit keeps the pace of its model."""
        return self._has_rate(request.queue, request.size, now)

    def _has_rate(self, queue: RequestQueue, size: int, now: float) -> bool:
        seconds = queue.rate_controller.wait(size, now)
        if seconds:
            self.wake_at = min(self.wake_at, now + seconds)
        return not seconds
