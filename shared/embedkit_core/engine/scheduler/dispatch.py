"""Whose turn it is: the lanes with work, the bounds on what is in flight, and which request goes next. Pure."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar
from weakref import WeakValueDictionary

from embedkit_core.engine.rate_limits.controller import Pace
from embedkit_core.engine.scheduler.items import Lane, Ticket
from embedkit_core.engine.scheduler.queues import Flight, LaneQueue

LANES = 512  # idle ones remember limits and that they have answered before; more are not worth their memory
T = TypeVar("T")
QUERIES_IN_A_ROW = 7  # while bulk waits; then it gets a slot


class Turns:
    """The lanes of one account, and which of them may send.

    `wake_at` is the time when a request may go out that had to wait for its model's pace.
    """

    def __init__(self, *, most: int | None, rng: random.Random) -> None:
        self.in_flight = 0
        self.wake_at = math.inf
        self.busy: dict[LaneQueue, None] = {}
        self._most = most
        self._rng = rng
        self._lanes: WeakValueDictionary[Lane, LaneQueue] = WeakValueDictionary()
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        self._kept_lanes: dict[LaneQueue, None] = {}
        self._kept_paces: dict[Pace, None] = {}
        self._bounds: Counter[int] = Counter()
        self._queries_in_a_row = 0
        self._row_after = 0

    def lane(self, lane: Lane) -> LaneQueue:
        """Give the queue of a lane, forgetting idle ones where somebody makes a new lane for each call."""
        queue = self._lanes.get(lane)
        if queue is None:
            queue = self._lanes[lane] = LaneQueue(lane, self.busy, self._pace(lane.model))
        self._remember(self._kept_lanes, queue)
        return queue

    def _pace(self, model: str) -> Pace:
        pace = self._paces.get(model)
        if pace is None:
            pace = self._paces[model] = Pace(self._rng)
        self._remember(self._kept_paces, pace)
        return pace

    def known_pace(self, model: str) -> Pace | None:
        """Give the pace of a model that was used lately."""
        return self._paces.get(model)

    def by_pace(self) -> dict[Pace, list[LaneQueue]]:
        """Give the lanes of each model that was used lately."""
        found: dict[Pace, list[LaneQueue]] = {}
        for queue in list(self._lanes.values()):
            found.setdefault(queue.pace, []).append(queue)
        return found

    @staticmethod
    def _remember(kept: dict[T, None], thing: T) -> None:
        """Keep what was used last; what is older is kept by those who still use it: texts, requests and callers."""
        kept.pop(thing, None)
        kept[thing] = None
        while len(kept) > LANES:
            del kept[next(iter(kept))]

    # Bounds

    def enter(self, ticket: Ticket, queue: LaneQueue, now: float) -> None:
        """Let a caller with work bound what is sent."""
        ticket.pace = queue.pace
        self._bounds[ticket.bound] += 1
        queue.pace.own.enter(ticket.rates, now)

    def leave(self, ticket: Ticket) -> None:
        """Let a caller without work bind nobody."""
        if ticket.pace is not None:
            self._bounds[ticket.bound] -= 1
            ticket.pace.own.leave(ticket.rates)

    def bound(self) -> int:
        """Give how many requests may be in flight: the strictest bound among callers with work."""
        bounds = [b for b, n in self._bounds.items() if n > 0]
        if self._most is not None:
            bounds.append(self._most)
        return min(bounds, default=1)

    def free_slots(self) -> int:
        """Give how many more requests may be sent now."""
        return max(0, self.bound() - self.in_flight)

    def depart(self, flight: Flight, now: float) -> None:
        """Take a slot for a request that goes out."""
        self.in_flight += 1
        flight.lane.in_flight += 1
        pace = flight.lane.pace
        more_waits = any(queue.waits for queue in self.busy if queue.pace is pace)
        flight.sent = pace.sent(flight.size, now, more_waits=more_waits)

    def release(self, flight: Flight) -> None:
        """Free the slot of a request; rows that are only being kept hold none."""
        if flight.items:
            flight.lane.pace.landed(flight.sent, self.bound())
            self.in_flight -= 1
            flight.lane.in_flight -= 1

    # Turns

    def next_flight(self, now: float) -> Flight | None:
        """Give the request that goes next; None where none may go now."""
        while self.free_slots():
            for queue in [queue for queue in self.busy if not queue.waits]:
                del self.busy[queue]
            urgent = [q for q in self.busy if q.ready(urgent=True)]
            bulk = [q for q in self.busy if q.ready(urgent=False)]
            queries = bool(urgent) and not (bulk and self._queries_in_a_row >= QUERIES_IN_A_ROW)
            first, second = (urgent, bulk) if queries else (bulk, urgent)
            chosen = self._open(first, urgent=queries, now=now)
            if chosen is None:  # the others may go ahead where they use up nothing of what these wait for
                queries = not queries
                waiting = {q.pace for q in first}
                chosen = self._open([q for q in second if q.pace not in waiting], urgent=queries, now=now)
            if chosen is None:
                return None
            self._row_after = self._queries_in_a_row + 1 if queries and bulk else 0
            group = chosen.take(urgent=queries, free_slots=self.free_slots(), now=now)
            if group is not None:
                self.busy[chosen] = self.busy.pop(chosen, None)  # to the back, so that lanes take turns
                return Flight(chosen, group.items)
        return None

    def took_turn(self) -> None:
        """Count the last turn; one whose request was not paid for is not, so that bulk loses none by it."""
        self._queries_in_a_row = self._row_after

    def _open(self, queues: Iterable[LaneQueue], *, urgent: bool, now: float) -> LaneQueue | None:
        waiting: set[Pace] = set()
        for queue in queues:
            if queue.pace in waiting:  # smaller requests must not use up what a larger one waits for
                continue
            size = 0
            if queue.pace.counts_tokens:
                size = queue.next_size(urgent=urgent, free_slots=self.free_slots(), now=now)
            if self._may_send(queue, size, now):
                return queue
            waiting.add(queue.pace)
        return None

    def may_go(self, flight: Flight, now: float) -> bool:
        """Tell whether a request that has its rate limiter's permit keeps the pace of its model."""
        return self._may_send(flight.lane, flight.size, now)

    def _may_send(self, queue: LaneQueue, size: int, now: float) -> bool:
        seconds = queue.pace.wait(size, now)
        if seconds:
            self.wake_at = min(self.wake_at, now + seconds)
        return not seconds
