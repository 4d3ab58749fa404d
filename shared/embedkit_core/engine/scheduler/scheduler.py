"""The engine's mind: a pure state machine that decides what is sent, when, and who gets which row.

No thread, clock, socket or lock: events come in as calls with the time, decisions go out through `poll`. The laws it
keeps are numbered in CONTRIBUTING.md and held by a Hypothesis state machine in tests/test_laws.py.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from embedkit_core.common.errors import BadReplyError, EmbedKitError, ProviderError
from embedkit_core.common.types import Batch, Reply, Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.engine.scheduler import failures
from embedkit_core.engine.scheduler.deadlines import Deadlines, too_late
from embedkit_core.engine.scheduler.dispatch import Turns
from embedkit_core.engine.scheduler.funding import Treasury
from embedkit_core.engine.scheduler.items import Flight, Item, Lane, Step, Ticket, Waiter
from embedkit_core.engine.scheduler.log_events import Notes
from embedkit_core.engine.scheduler.queues import LaneQueue, Parked
from embedkit_core.engine.scheduler.recent import Recent, RecentRows
from embedkit_core.engine.scheduler.replies import check, collect, finished, seen
from embedkit_core.engine.scheduler.retry import RetryPolicy


class Scheduler:
    """Everything under way for one account; `table` holds each text once, `recent` the rows finished a moment ago.

    `nudge` is called where something may be sent again after another account's bill: `poll` then.
    """

    def __init__(
        self,
        *,
        in_flight: int | None = None,
        rng: random.Random,
        retry: RetryPolicy | None = None,
        nudge: Callable[[], object] = lambda: None,
    ) -> None:
        self.recent = RecentRows()
        self.retry = retry or RetryPolicy()
        self.rng = rng
        self.table: dict[bytes, Item] = {}
        self.turns = Turns(most=in_flight, rng=rng)
        self.parked = Parked()
        self.deadlines = Deadlines()
        self._permitted: list[Flight] = []
        self.treasury = Treasury(self, nudge)
        self.notes = Notes()
        self._step = Step()
        self._stopped = False

    # What comes in

    def submit(self, ticket: Ticket, lane: Lane, wants: Sequence[tuple[bytes, str, int]], now: float) -> None:
        """Take on the (key, text, size) wants of a ticket: join what is under way, queue the rest."""
        queue = self.turns.lane(lane)
        self.turns.enter(ticket, queue, now)
        self.deadlines.add(ticket)
        fresh: list[Item] = []
        finished: list[tuple[Item, Recent]] = []
        for index, (key, text, size) in enumerate(wants):
            item = self.table.get(key)
            if item is None:
                item = self.table[key] = Item(key, text, size, queue, urgent=ticket.urgent)
                if lane.cutting is not None and queue.is_surely_too_long(size):
                    self.have_cut(item)
                recent = self.recent.get(key)
                if recent is None:
                    fresh.append(item)
                else:
                    finished.append((item, recent))
            else:
                self.treasury.ask_again(item)
                if ticket.urgent and not item.urgent:
                    item.lane.promote(item)
                if lane.gate is None and item.lane.lane.gate is not None:
                    self._free_from_limiter(item, queue, now)
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
                own.plan_job(self.turns.free_slots(), now)
        self._close_if_done(ticket)

    def have_cut(self, item: Item) -> None:
        """Take a text to the lane in which its provider cuts it, where there is one."""
        lane = item.lane.lane
        assert lane.cutting is not None
        limits = replace(lane.limits, text_tokens=None)
        twin = replace(lane, wire_id=lane.wire_id + b"cut", wire=lane.cutting, cutting=None, cuts=True, limits=limits)
        item.cut, item.lane = True, self.turns.lane(twin)
        if lane.limits.text_tokens is not None:  # no more is looked at, or billed
            item.size = min(item.size, lane.limits.text_tokens)

    def _free_from_limiter(self, item: Item, queue: LaneQueue, now: float) -> None:
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
            queue.plan_job(self.turns.free_slots(), now)

    def withdraw(self, ticket: Ticket) -> None:
        """Let a caller leave: what only it wanted is dropped if unsent, and finished and kept if sent."""
        if ticket.closed:
            return
        self._close(ticket)
        self._forsake(ticket)

    def _forsake(self, ticket: Ticket) -> None:
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

    def replied(self, flight: Flight, reply: Reply, now: float) -> None:
        """Take the answer to a request; its rows go to the caches before anybody sees them."""
        queue = flight.lane
        try:
            check(reply, len(flight.items), queue.width, queue.lane)
            width, reply = reply.vectors.shape[1], finished(reply, queue.lane)
        except BadReplyError as error:
            error.tokens = getattr(reply, "tokens", None)
            self.failed(flight, error, now)
            return
        # What is billed for cut texts says nothing of how many tokens the estimate stands for.
        queue.pace.answered(flight.sent, None if queue.lane.cuts else reply.tokens, reply.headroom, now)
        queue.refused = queue.doubts = 0
        if not queue.proven:
            queue.proven = True
            queue.plan_job(self.turns.free_slots() + 1, now)
        queue.width = queue.width or width
        self.treasury.settle(flight, reply.tokens)
        collect(flight, reply)
        self._step.commits.append(flight)

    def failed(self, flight: Flight, error: ProviderError, now: float) -> None:
        """Take a request's failure: each text is tried again, looked into, or given up, by its waiters' policies."""
        self.treasury.settle_failure(flight, error)
        failures.settle(self, flight, error, now)

    def committed(self, flight: Flight) -> None:
        """Hand out the rows of a request that are kept now, and free its slot."""
        if flight.late():  # somebody with another cache joined while the rows were being kept
            self._step.commits.append(flight)
            return
        self.turns.release(flight)
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
        return flight.lane.busy is self.turns.busy

    def stop(self) -> None:
        """Start nothing any more; what is in flight may still come in."""
        self._stopped = True

    def poll(self, now: float) -> Step:
        """Fill the free slots and give what there is to do since the last call."""
        self._expire(now)
        for item in self.parked.due(now):
            if item.waiters:
                item.lane.enter([item], front=True)
            else:
                self.drop(item)
        self.turns.wake_at = math.inf
        if not self._stopped:
            self._send_permitted(now)
            self._fill_slots(now)
        self.recent.forget()
        step, self._step = self._step, Step()
        times = [*self.parked.next_due(), *self.deadlines.next_due(), self.turns.wake_at]
        step.wake_at = min((at for at in times if at < math.inf), default=None)
        return step

    def _expire(self, now: float) -> None:
        """Tell those whose deadline has passed, and let go of what only they wanted, as when they leave."""
        for ticket in self.deadlines.passed(now):
            error = too_late(ticket)
            waiting = [w.index for item in ticket.items for w in item.waiters if w.ticket is ticket]
            self._forsake(ticket)
            for index in waiting:
                self.give_up(ticket, index, copy.copy(error))

    # Slots

    @property
    def in_flight(self) -> int:
        """How many requests are under way, or being kept."""
        return self.turns.in_flight

    def _fill_slots(self, now: float) -> None:
        while (flight := self.turns.next_flight(now)) is not None:
            if flight.lane.lane.gate is not None:  # it takes no slot before it has its permit: others need not wait
                flight.lane.asking = flight
                self._step.asks.append(flight)
            elif self.treasury.fund(flight):
                self._send(flight, now)
            else:
                continue
            self.turns.took_turn()

    def _send_permitted(self, now: float) -> None:
        """Send what the rate limiters have let, without the texts that nobody wants any more."""
        for flight in list(self._permitted):
            if self.turns.free_slots() and self.turns.may_go(flight, now):
                self._permitted.remove(flight)
                flight.items = self.drop_unwanted(flight)
                if flight.items and self.treasury.fund(flight):
                    self._send(flight, now)

    def drop_unwanted(self, flight: Flight) -> list[Item]:
        """Let go of the texts of a request that nobody wants any more, and give the others."""
        for item in flight.items:
            if not item.waiters:
                self.drop(item)
        return [item for item in flight.items if item.waiters]

    def _send(self, flight: Flight, now: float) -> None:
        self.turns.depart(flight, now)
        lane = flight.lane.lane
        again = any(item.failures for item in flight.items)
        flight.payer.charge(Usage(requests=1, retries=int(again)))
        flight.batch = Batch([item.text for item in flight.items], lane.wire, lane.timeout, lane.widths)
        self._step.sends.append(flight)

    # Rows

    def _hand_out(self, ticket: Ticket, wants: list[int], vectors: Vectors, *, paid: int) -> None:
        if ticket.closed:
            return
        try:
            rows = seen(vectors, ticket)
        except BadReplyError as error:
            for want in wants:
                self.give_up(ticket, want, copy.copy(error))
            return
        ticket.rows.put_wants(wants, rows)
        ticket.pending -= len(wants)
        ticket.sent += paid
        ticket.joined += len(wants) - paid
        self._close_if_done(ticket)

    def _take_recent(self, queue: LaneQueue, finished: list[tuple[Item, Recent]]) -> None:
        """Give rows that were finished since the caller looked; kept first where the caller's cache lacks them."""
        for item, recent in finished:
            flight = Flight(queue, [], [item], recent.row[None, :], [recent.truncated])
            flight.kept = list(recent.caches)
            self.committed(flight)

    # Endings

    def give_up(self, ticket: Ticket, index: int, error: EmbedKitError) -> None:
        """Record that a want of a ticket failed for good."""
        ticket.failed[index] = error
        ticket.pending -= 1
        self._close_if_done(ticket)

    def drop(self, item: Item) -> None:
        """Take an item that nobody wants any more out of the queues and the table."""
        item.lane.leave(item)
        self.treasury.forget(item)
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
        self.deadlines.drop(ticket)
        self.turns.leave(ticket)
