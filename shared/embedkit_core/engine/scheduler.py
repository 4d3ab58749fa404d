"""The engine's mind: a pure state machine that decides what is sent, when, and who gets which row.

No thread, clock, socket or lock: events come in as calls with the time, decisions go out through `poll`. The laws it
keeps are numbered in CONTRIBUTING.md and held by a Hypothesis state machine in tests/test_laws.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from embedkit_core.engine import failures
from embedkit_core.engine.items import Flight, Group, Item, Lane, Step, Ticket, Waiter
from embedkit_core.engine.queues import LaneQueue, Parked
from embedkit_core.engine.recent import Recent, RecentRows
from embedkit_core.engine.replies import bill, check, collect
from embedkit_core.engine.retry import RetryPolicy
from embedkit_core.errors import BadReplyError, ProviderError
from embedkit_core.types import Batch, Reply, Usage, Vectors

LANES = 512  # idle ones remember limits and that they have answered before; more are not worth their memory
QUERIES_IN_A_ROW = 7  # while bulk waits; then it gets a slot


class Scheduler:
    """Everything under way for one account; `table` holds each text once, `recent` the rows finished a moment ago."""

    def __init__(self, *, in_flight: int | None = None, rng: random.Random, retry: RetryPolicy | None = None) -> None:
        self.recent = RecentRows()
        self.in_flight = 0
        self.retry = retry or RetryPolicy()
        self.rng = rng
        self.paused_until = float("-inf")
        self.table: dict[bytes, Item] = {}
        self._most = in_flight
        self._lanes: dict[Lane, LaneQueue] = {}
        self._busy: dict[LaneQueue, None] = {}
        self._bounds: Counter[int] = Counter()
        self.parked = Parked()
        self._permitted: list[Flight] = []
        self._queries_in_a_row = 0
        self._step = Step()
        self._stopped = False

    # What comes in

    def submit(self, ticket: Ticket, lane: Lane, wants: Sequence[tuple[bytes, str, int]]) -> None:
        """Take on the (key, text, size) wants of a ticket: join what is under way, queue the rest."""
        queue = self._lane(lane)
        ticket.pending = len(wants)
        ticket.counted = True
        self._bounds[ticket.bound] += 1
        fresh: list[Item] = []
        finished: list[tuple[Item, Recent]] = []
        for index, (key, text, size) in enumerate(wants):
            item = self.table.get(key)
            if item is None:
                item = self.table[key] = Item(key, text, size, queue, urgent=ticket.urgent)
                recent = self.recent.get(key)
                if recent is None:
                    fresh.append(item)
                else:
                    finished.append((item, recent))
            else:
                if ticket.urgent and not item.urgent:
                    item.lane.promote(item)
                if lane.gate is None and item.lane.lane.gate is not None:
                    self._free_from_limiter(item, queue)
            item.waiters.append(Waiter(ticket, index, item.failures))
            if ticket.cache is not None and not any(cache is ticket.cache for cache in item.caches):
                item.caches.append(ticket.cache)
            ticket.items.append(item)
        self._take_recent(queue, finished)
        queue.enter(fresh)
        if fresh and not ticket.urgent:
            queue.plan_job(self.free_slots())
        self._close_if_done(ticket)

    def _free_from_limiter(self, item: Item, queue: LaneQueue) -> None:
        """Take an unsent text to a caller who has no rate limiter, and must not wait for somebody else's."""
        asking = item.lane.asking
        if asking is not None and item in asking.items:
            asking.items.remove(item)
        elif item.home is None:
            return  # in the air, or between two tries
        item.lane.leave(item)
        item.lane = queue
        queue.enter([item])
        if not item.urgent:
            queue.plan_job(self.free_slots())

    def _lane(self, lane: Lane) -> LaneQueue:
        """Give the queue of a lane, forgetting idle ones where somebody makes a new lane for each call."""
        queue = self._lanes.pop(lane, None) or LaneQueue(lane, self._busy)
        if len(self._lanes) >= LANES:
            self._lanes = {key: q for key, q in self._lanes.items() if q.in_flight or q.waits}
        self._lanes[lane] = queue
        return queue

    def withdraw(self, ticket: Ticket) -> None:
        """Let a caller leave: what only it wanted is dropped if unsent, and finished and kept if sent."""
        if ticket.closed:
            return
        self._close(ticket)
        for item in ticket.items:
            item.waiters[:] = [w for w in item.waiters if w.ticket is not ticket]
            if not item.waiters and (item.home is not None or item.missing):
                self.drop(item)
        for queue in {item.lane for item in ticket.items}:
            queue.tidy()
        ticket.items.clear()

    def permitted(self, flight: Flight) -> None:
        """Take the permit of a rate limiter for a request; it goes out with the next poll."""
        flight.lane.asking = None
        self._permitted.append(flight)

    def barred(self, flight: Flight, error: ProviderError) -> None:
        """Take a rate limiter's own failure: nothing of this lane can go out."""
        flight.lane.asking = None
        self.drop_unwanted(flight)
        failures.give_up_lane(self, flight, error)

    def replied(self, flight: Flight, reply: Reply) -> None:
        """Take the answer to a request; its rows go to the caches before anybody sees them."""
        queue = flight.lane
        try:
            check(reply, len(flight.items), queue.dimensions, queue.lane.model)
        except BadReplyError as error:
            error.tokens = getattr(reply, "tokens", None)
            self.failed(flight, error, now=float("-inf"))
            return
        queue.refused = queue.doubts = 0
        if not queue.proven:
            queue.proven = True
            queue.plan_job(self.free_slots() + 1)
        queue.dimensions = reply.vectors.shape[1]
        bill(flight, reply.tokens)
        collect(flight, reply)
        self._step.commits.append(flight)

    def failed(self, flight: Flight, error: ProviderError, now: float) -> None:
        """Take a request's failure: each text is tried again, looked into, or given up, by its waiters' policies."""
        if isinstance(error, BadReplyError):
            bill(flight, error.tokens)
        failures.settle(self, flight, error, now)

    def committed(self, flight: Flight) -> None:
        """Hand out the rows of a request that are kept now, and free its slot."""
        if flight.late():  # somebody with another cache joined while the rows were being kept
            self._step.commits.append(flight)
            return
        self.release(flight)
        self.recent.note(flight)
        assert flight.rows is not None or not flight.done
        handed: dict[Ticket, tuple[list[int], list[int], list[int]]] = {}
        for place, item in enumerate(flight.done):
            self.forget(item)
            for waiter in item.waiters:
                ticket = waiter.ticket
                wants, places, own = handed.setdefault(ticket, ([], [], []))
                wants.append(waiter.index)
                places.append(place)
                if ticket is item.payer:
                    own.append(place)
                if flight.flags[place]:
                    ticket.truncated.append(waiter.index)
            item.waiters.clear()
        for ticket, (wants, places, own) in handed.items():
            assert flight.rows is not None
            whole = len(places) == len(flight.rows)
            self._hand_out(ticket, wants, flight.rows if whole else flight.rows[places], paid=len(own))

    def owns(self, flight: Flight) -> bool:
        """Tell whether a request is one of this scheduler's own."""
        return flight.lane.busy is self._busy

    def stop(self) -> None:
        """Start nothing any more; what is in flight may still come in."""
        self._stopped = True

    def poll(self, now: float) -> Step:
        """Fill the free slots and give what there is to do since the last call."""
        for item in self.parked.due(now):
            if item.waiters:
                item.lane.enter([item], front=True)
            else:
                self.drop(item)
        if not self._stopped and self.paused_until <= now:
            self._send_permitted()
            self._fill_slots()
        self.recent.forget()
        step, self._step = self._step, Step()
        times = self.parked.next_due()
        if self.paused_until > now and self._anything_ready():
            times.append(self.paused_until)
        step.wake_at = min(times, default=None)
        return step

    # Slots

    def bound(self) -> int:
        """Give how many requests may be in flight: the strictest bound among callers with work."""
        bounds = [b for b, n in self._bounds.items() if n > 0]
        if self._most is not None:
            bounds.append(self._most)
        return min(bounds, default=1)

    def free_slots(self) -> int:
        """Give how many more requests may be sent now."""
        return max(0, self.bound() - self.in_flight)

    def release(self, flight: Flight) -> None:
        """Free the slot of a request; rows that are only being kept hold none."""
        if flight.items:
            self.in_flight -= 1
            flight.lane.in_flight -= 1

    def _anything_ready(self) -> bool:
        return bool(self._permitted) or any(q.ready(urgent=u) for q in self._busy for u in (True, False))

    def _fill_slots(self) -> None:
        while self.free_slots() and (flight := self._next_flight()) is not None:
            if flight.lane.lane.gate is None:
                self._send(flight)
            else:  # it takes no slot before it has its permit, so that who has no limiter need not wait for it
                flight.lane.asking = flight
                self._step.asks.append(flight)

    def _send_permitted(self) -> None:
        """Send what the rate limiters have let, without the texts that nobody wants any more."""
        while self._permitted and self.free_slots():
            flight = self._permitted.pop(0)
            flight.items = self.drop_unwanted(flight)
            if flight.items:
                self._send(flight)

    def drop_unwanted(self, flight: Flight) -> list[Item]:
        """Let go of the texts of a request that nobody wants any more, and give the others."""
        for item in flight.items:
            if not item.waiters:
                self.drop(item)
        return [item for item in flight.items if item.waiters]

    def _send(self, flight: Flight) -> None:
        self.in_flight += 1
        flight.lane.in_flight += 1
        lane = flight.lane.lane
        for item in flight.items:
            item.payer = item.root.payer = item.waiters[0].ticket
        again = any(item.failures for item in flight.items)
        flight.items[0].waiters[0].ticket.charge(Usage(requests=1, retries=int(again)))
        flight.batch = Batch([item.text for item in flight.items], lane.wire, lane.timeout)
        self._step.sends.append(flight)

    def _next_flight(self) -> Flight | None:
        while True:
            for queue in [queue for queue in self._busy if not queue.waits]:
                del self._busy[queue]
            urgent = [q for q in self._busy if q.ready(urgent=True)]
            bulk = [q for q in self._busy if q.ready(urgent=False)]
            if not urgent and not bulk:
                return None
            queries = bool(urgent) and not (bulk and self._queries_in_a_row >= QUERIES_IN_A_ROW)
            self._queries_in_a_row = self._queries_in_a_row + 1 if queries and bulk else 0
            queue = (urgent if queries else bulk)[0]
            group = queue.take(urgent=queries, free_slots=self.free_slots())
            if group is not None:
                return self._launch(queue, group)

    def _launch(self, queue: LaneQueue, group: Group) -> Flight:
        # The lane goes to the back, so that lanes take turns.
        self._busy[queue] = self._busy.pop(queue, None)
        return Flight(queue, group.items)

    # Rows

    def _hand_out(self, ticket: Ticket, wants: list[int], vectors: Vectors, *, paid: int) -> None:
        if ticket.closed:
            return
        if ticket.rows.fits(vectors.shape[1]):
            ticket.rows.put_wants(wants, vectors)
            ticket.pending -= len(wants)
            ticket.sent += paid
            ticket.joined += len(wants) - paid
        else:
            message = (
                f"the model answers {vectors.shape[1]} dimensions and the cache holds vectors of another width: it has "
                "changed; name dimensions=, or another cache"
            )
            for want in wants:
                self.give_up(ticket, want, BadReplyError(message))
        self._close_if_done(ticket)

    def _take_recent(self, queue: LaneQueue, finished: list[tuple[Item, Recent]]) -> None:
        """Give rows that were finished since the caller looked; kept first where the caller's cache lacks them."""
        for item, recent in finished:
            flight = Flight(queue, [], [item], recent.row[None, :], [recent.truncated])
            flight.kept = list(recent.caches)
            self.committed(flight)

    # Endings

    def give_up(self, ticket: Ticket, index: int, error: ProviderError) -> None:
        """Record that a want of a ticket failed for good."""
        ticket.failed[index] = error
        ticket.pending -= 1
        self._close_if_done(ticket)

    def drop(self, item: Item) -> None:
        """Take an item that nobody wants any more out of the queues and the table."""
        item.lane.leave(item)
        self.forget(item)

    def forget(self, item: Item) -> None:
        """Take an item out of the table, unless its place is another's by now."""
        if self.table.get(item.key) is item:
            del self.table[item.key]

    def _close_if_done(self, ticket: Ticket) -> None:
        if not ticket.closed and ticket.pending == 0:
            self._close(ticket)
            ticket.items.clear()  # an item knows its payer: a circle would keep the whole result from being let go
            self._step.finished.append(ticket)

    def _close(self, ticket: Ticket) -> None:
        ticket.closed = True
        if ticket.counted:
            self._bounds[ticket.bound] -= 1
