"""Requests that several processes coordinate: their leases, and the texts that wait for other processes. No I/O.

A request that holds a slot asks the coordinator before it is sent. Texts that another process is sending leave it and
wait here until that process has finished; then the cache is read again.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from functools import partial
from math import ceil
from typing import NamedTuple, TypeAlias

import numpy as np

from embedkit_core.common.errors import BudgetError
from embedkit_core.common.types import Cache, Entry
from embedkit_core.coordination.opening import CoordinatorHandle
from embedkit_core.coordination.port import LEASE_SECONDS, MAX_WAIT_AHEAD, Begin, End, Grant, LeaseID
from embedkit_core.costs.amounts import BudgetStatus
from embedkit_core.costs.billing import shared_budget_error, unchecked_budget_error
from embedkit_core.engine.scheduler.dispatch import Dispatcher
from embedkit_core.engine.scheduler.funding import BudgetLedger, reservations
from embedkit_core.engine.scheduler.items import Item, max_billed_tokens
from embedkit_core.engine.scheduler.queues import Actions, Request
from embedkit_core.engine.scheduler.registry import Registry
from embedkit_core.engine.scheduler.retry import RetryQueue

MAX_QUERY_WAIT = 1.0  # seconds that a query waits for another process, before it is sent here too
MIN_PAUSE, MAX_PAUSE, PAUSE_GROWTH = 0.004, 0.25, 1.5  # seconds between two checks on other processes
# Seconds that a request may be sent after its grant; if it is later, the coordinator is asked again. With limits per
# minute its permit may expire, without them only its claims.
MAX_LATENESS, MAX_LATENESS_WITHOUT_LIMITS = 0.2, LEASE_SECONDS / 2
BUDGET_PAUSE = 0.1  # seconds until a text asks again for a budget that other requests hold

Found: TypeAlias = Mapping[bytes, tuple[Entry, Cache]]


class ForeignLease(NamedTuple):
    """A lease of another process."""

    handle: CoordinatorHandle
    lease: LeaseID


class SharedRequests:
    """The coordinated requests of one scheduler.

    Attributes:
        stopped: True if no request may be sent any more.
        unanswered: The number of requests that a coordinator was asked for and has not answered.
        processes: The last known number of processes of a coordinator, at least 1.
        uncoordinated: The requests that were sent without a coordinator, because it could not be reached.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        ledger: BudgetLedger,
        registry: Registry,
        retry_queue: RetryQueue,
        rng: random.Random,
        send: Callable[[Request], None],
    ) -> None:
        """Create the state of a scheduler without coordinated requests.

        Args:
            dispatcher: The scheduler's slots and queues.
            ledger: Its budget reservations.
            registry: Its items and tickets.
            retry_queue: Its items that wait for a retry.
            rng: The source of jitter.
            send: Sends a request that holds a slot.
        """
        self.stopped = False
        self.unanswered = 0
        self.processes = 1
        self.uncoordinated = 0
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._registry = registry
        self._retry_queue = retry_queue
        self._rng = rng
        self._send = send
        self._begin: list[Request] = []
        self._end: list[tuple[CoordinatorHandle, End]] = []
        self._look_ups: list[list[Item]] = []
        self._open: set[Request] = set()
        self._scheduled: list[tuple[float, int, Request]] = []
        self._n = 0
        self._unfinished: list[Request] = []  # whose split texts are not complete
        self._unstored: set[Item] = set()  # completed texts whose rows other machines cannot read yet
        self._elsewhere: dict[ForeignLease, list[Item]] = {}
        self._queries: dict[Item, None] = {}  # those that wait there, and some that do no more
        self._checking: set[CoordinatorHandle] = set()
        self._pause = MIN_PAUSE
        self._check_at = 0.0

    # Requests

    def begin(self, request: Request) -> None:
        """Ask the coordinator for a request that holds a slot."""
        coordination = request.queue.spec.coordination
        assert coordination is not None
        controller, items = request.queue.rate_controller, request.items
        backlog = self._dispatcher.backlog(request)
        keys = [_claimed_key(item) if coordination.has_claims else b"" for item in items]
        request.begin = Begin(
            coordination.account,
            request.queue.spec.model,
            keys,
            [controller.tokens(item.size) for item in items],
            min((item.root.checked_at for item, key in zip(items, keys, strict=True) if key), default=math.inf),
            controller.user_limits.strictest,
            items[0].is_query,
            backlog.min_requests,
            ceil(backlog.tokens),
            reservations(items),
        )
        self._begin.append(request)
        self.unanswered += 1

    def granted(self, request: Request, grant: Grant, now: float, at: float) -> None:
        """Accept the coordinator's answer from the time `at`: send what is granted, let the other texts wait."""
        self.unanswered -= 1
        queue, items = request.queue, request.items
        queue.rate_controller.user_limits.share, self.processes = 1, max(1, grant.processes)
        if grant.paused:
            queue.rate_controller.pause(now + grant.paused)
        if grant.wait > grant.paused:
            queue.rate_controller.user_limits.on_shared_wait(now)
        request.lease = grant.lease
        if grant.lease is not None:
            self._open.add(request)
        named = {*grant.others, *grant.recheck, *grant.unfunded}
        rest = [item for index, item in enumerate(items) if index not in named]
        is_late = now > at + grant.wait + _max_lateness(request)
        may_send = grant.lease is not None and not is_late and not self.stopped
        kept = [item for item in rest if item.waiters] if may_send else []
        if len(kept) < len(items) or grant.wait:
            self._dispatcher.give_back_slot(request, now)
        self._ledger.release(request, kept)
        for index, lease in grant.others.items():
            self._wait_for(request, items[index], lease, now)
        self._look_up(items[index] for index in grant.recheck)
        for index, status in grant.unfunded.items():
            self._hold_or_refuse(request, index, items[index], status, now)
        if kept:
            self._start(request, at + grant.wait, has_slot=len(kept) == len(items) and not grant.wait)
            unwanted = [item for item in rest if not item.waiters]
        else:
            self.end(request)
            unwanted = rest
            if grant.lease is None and grant.wait:
                delay = max(0.0, grant.wait - MAX_WAIT_AHEAD * self._rng.random())
                assert request.begin is not None
                queue.delay(now + delay, request.begin)
        queue.enter(self._registry.drop_unwanted(unwanted), front=True)

    def unreachable(self, request: Request, reason: str, now: float) -> None:
        """Accept that the coordinator cannot be reached: send the texts that no named budget pays for without it."""
        self.unanswered -= 1
        request.queue.rate_controller.user_limits.share = self.processes
        kept: list[Item] = []
        for item in request.items:
            names = _named_budgets(item)
            if names:
                self._refuse(item, names, partial(_unchecked, names[0], reason))
            elif item.waiters and not self.stopped:
                kept.append(item)
            else:
                self._registry.drop(item)
        is_whole = len(kept) == len(request.items)
        if not is_whole:
            self._dispatcher.give_back_slot(request, now)
        self._ledger.release(request, kept)
        if kept:
            self.uncoordinated += 1
            self._start(request, now, has_slot=is_whole)

    def _start(self, request: Request, at: float, *, has_slot: bool) -> None:
        """Send a request now, or at the time of its permit."""
        if has_slot:
            self._send(request)
            return
        self._n += 1
        request.queue.scheduled += 1
        heapq.heappush(self._scheduled, (at, self._n, request))

    def send_due(self, now: float) -> None:
        """Send the requests whose permit allows it by now, as long as slots are free."""
        while self._scheduled and self._scheduled[0][0] <= now and self._dispatcher.free_slots():
            at, _, request = heapq.heappop(self._scheduled)
            request.queue.scheduled -= 1
            items = self._registry.drop_unwanted(request.items)
            # The permit of a late request may have expired, and its claims may be lost.
            kept = items if request.lease is None or now <= at + _max_lateness(request) else []
            self._ledger.release(request, kept)
            if kept:
                self._dispatcher.take_slot(request, now)
                self._send(request)
            else:
                self.end(request)
                request.queue.enter(items, front=True)

    def end(self, request: Request, *, pause: float = 0.0) -> None:
        """End the lease of a request that failed, or was not sent, or needs no claims any more.

        Args:
            request: The request.
            pause: Seconds for which the provider asked to send nothing.
        """
        coordination, lease = request.queue.spec.coordination, request.lease
        if coordination is None or lease is None:
            return
        request.lease = None
        self._open.discard(request)
        end = End(lease, request.sent_at, request.billed, pause, dict(request.bills))
        self._end.append((coordination.handle, end))

    def committed(self, request: Request) -> None:
        """Accept that the rows of a request are in the cache. Its claims last until other machines can read them.

        The claim on a split text lasts until the text is complete.
        """
        if request.unstored:
            self._unstored.update(request.done)
            return
        if self._unstored:
            self._unstored.difference_update(request.done)
        if any(self._is_unfinished(item.root) for item in request.items if item.parent is not None):
            self._unfinished.append(request)
        else:
            self.end(request)

    def _is_unfinished(self, root: Item) -> bool:
        return self._is_pending(root) or root in self._unstored

    def _is_pending(self, item: Item) -> bool:
        return self._registry.items.get(item.key) is item

    def stop(self) -> None:
        """Send no more requests, and end the leases of those whose permit lies ahead."""
        self.stopped = True
        for _, _, request in self._scheduled:
            self.end(request)
        self._scheduled.clear()

    def end_all(self) -> list[tuple[CoordinatorHandle, End]]:
        """Return the ends of all open leases, for a scheduler that is replaced."""
        for request in list(self._open):
            self.end(request)
        return self._end

    # Texts that wait for other processes

    def _wait_for(self, request: Request, item: Item, lease: LeaseID, now: float) -> None:
        coordination = request.queue.spec.coordination
        assert coordination is not None
        if item.waits_since is None:
            item.waits_since = now
        item.location = self
        foreign = ForeignLease(coordination.handle, lease)
        if foreign not in self._elsewhere:
            self._check_at = min(self._check_at, now + MIN_PAUSE) if self._elsewhere else now + MIN_PAUSE
            self._elsewhere[foreign], self._pause = [], MIN_PAUSE
        self._elsewhere[foreign].append(item)
        if item.is_query:
            self._queries[item] = None

    def _waiting(self, items: Iterable[Item]) -> list[Item]:
        """Return the items that still wait here, each once; those without callers are dropped."""
        # A query that joins an item takes it away from here. It may come back to the same lease.
        return self._registry.drop_unwanted([item for item in dict.fromkeys(items) if item.location is self])

    @property
    def waiting(self) -> list[Item]:
        """The texts that wait for other processes."""
        return [item for items in self._elsewhere.values() for item in items if item.location is self and item.waiters]

    def checked(self, handle: CoordinatorHandle, ended: Collection[LeaseID] | None, now: float) -> None:
        """Accept which leases have ended, so that their texts may be in the cache; None if it cannot be found out."""
        self._checking.discard(handle)
        done = [one for one in self._elsewhere if one.handle is handle and (ended is None or one.lease in ended)]
        for foreign in done:
            self._look_up(self._waiting(self._elsewhere.pop(foreign)))
        self._pause = MIN_PAUSE if done else min(MAX_PAUSE, self._pause * PAUSE_GROWTH)
        self._check_at = now + self._pause * self._rng.uniform(0.5, 1.0)

    def _look_up(self, items: Iterable[Item]) -> None:
        """Read the cache again for items that another process may have completed."""
        items = list(items)
        for item in items:
            item.location = self
            self._queries.pop(item, None)
        if items:
            self._look_ups.append(items)

    def looked_up(self, items: list[Item], found: Found, started_at: float) -> list[Request]:
        """Accept the result of reading the cache again: queue the texts that it lacks.

        Args:
            items: The items.
            found: The cached rows by key, each with its cache.
            started_at: The time before the cache was read.

        Returns:
            The completed texts, as requests with their rows.
        """
        rows: dict[tuple[int, str, int], dict[Item, tuple[Entry, Cache]]] = {}
        for item in self._waiting(items):
            root, row = item.root, found.get(item.root.key)
            item.location = None
            if row is not None and self._is_pending(root) and _fits(row[0], root):
                vector = row[0].vector
                rows.setdefault((len(vector), vector.dtype.str, id(row[1])), {})[root] = row
                root.payer, root.missing_pieces = None, 0
            else:
                root.checked_at = max(root.checked_at, started_at)
                item.queue.enter([item], front=True)
        return [_completed(found_rows) for found_rows in rows.values()]

    # Budgets

    def _hold_or_refuse(self, request: Request, index: int, item: Item, status: BudgetStatus, now: float) -> None:
        """Ask again for a text whose budget is held by other requests; refuse it if the budget is used up."""
        assert request.begin is not None
        (amount,) = (r.amounts[index] for r in request.begin.reservations if r.budget == status.name)
        if status.held != status.holds and status._replace(held=status.holds).allows(amount):
            self._settle_pieces(item.root)
            self._retry_queue.add([item], until=now + BUDGET_PAUSE * self._rng.uniform(0.5, 1.0))
            return
        tokens = max_billed_tokens(item)
        self._refuse(item, [status.name], partial(shared_budget_error, status, tokens))

    def _settle_pieces(self, root: Item) -> None:
        """End the leases of pieces that are done: what they hold may be what the other pieces wait for."""
        for request in list(self._unfinished):
            if any(item.root is root for item in request.items):
                self._unfinished.remove(request)
                self.end(request)

    def _refuse(self, item: Item, names: Collection[str], error: Callable[[Decimal | None], BudgetError]) -> None:
        """Fail an item for the waiters with one of these budgets; queue it for the others."""
        for waiter in list(item.waiters):
            if any(budget.name in names for budget in waiter.ticket.billing.budgets):
                item.waiters.remove(waiter)
                self._registry.give_up(waiter.ticket, waiter.index, error(waiter.ticket.billing.price))
        if item.waiters:
            item.queue.enter([item], front=True)
        else:
            self._registry.drop_piece(item)

    # Actions

    def add_actions(self, actions: Actions, now: float) -> None:
        """Add the actions since the last call."""
        unfinished, self._unfinished = self._unfinished, []
        for request in unfinished:
            self.committed(request)
        actions.begin, self._begin = self._begin, []
        actions.end, self._end = self._end, []
        if self._elsewhere:
            actions.check += self._checks(now)
        actions.look_up, self._look_ups = self._look_ups, []

    def _checks(self, now: float) -> list[tuple[CoordinatorHandle, list[LeaseID]]]:
        """Return the leases to check now, by coordinator."""
        by_handle: dict[CoordinatorHandle, list[LeaseID]] = {}
        for foreign, items in list(self._elsewhere.items()) if now >= self._check_at else ():
            self._elsewhere[foreign] = waiting = self._waiting(items)
            if not waiting:
                del self._elsewhere[foreign]
            elif foreign.handle not in self._checking:
                by_handle.setdefault(foreign.handle, []).append(foreign.lease)
        self._checking.update(by_handle)
        return list(by_handle.items())

    def send_impatient_queries(self, now: float) -> None:
        """Queue the queries that have waited long enough for another process; they are sent without a claim."""
        for item in list(self._queries):
            if item.location is not self:
                del self._queries[item]
            elif now >= _impatient_at(item):
                del self._queries[item]
                item.is_claimed = False
                item.location = None
                item.queue.enter([item])

    def next_due(self) -> list[float]:
        """Return the times of the next events; empty if there are none."""
        times = [at for at, _, _ in self._scheduled[:1] if self._dispatcher.free_slots()]
        if self._elsewhere:
            if any(foreign.handle not in self._checking for foreign in self._elsewhere):
                times.append(self._check_at)
            times += [_impatient_at(item) for item in self._queries if item.location is self]
        return times


def _completed(rows: Mapping[Item, tuple[Entry, Cache]]) -> Request:
    """Return a request that another process has sent, with rows of one width from one cache."""
    entries = [entry for entry, _ in rows.values()]
    matrix = np.stack([entry.vector for entry in entries])
    caches = [next(iter(rows.values()))[1]]
    truncated = [entry.truncated for entry in entries]
    return Request(next(iter(rows)).queue, [], list(rows), matrix, truncated, written_to=caches)  # type: ignore[arg-type]


def _max_lateness(request: Request) -> float:
    assert request.begin is not None
    return MAX_LATENESS if any(request.begin.limits) else MAX_LATENESS_WITHOUT_LIMITS


def _impatient_at(item: Item) -> float:
    assert item.waits_since is not None
    return item.waits_since + MAX_QUERY_WAIT


def _claimed_key(item: Item) -> bytes:
    """Return the key that a text claims; empty if it claims none, because no cache could hold it for others."""
    return item.root.key if item.is_claimed and item.root.caches else b""


def _unchecked(name: str, reason: str, _price: Decimal | None) -> BudgetError:
    return unchecked_budget_error(name, reason)


def _named_budgets(item: Item) -> list[str]:
    """Return the names of the budgets that pay for a text."""
    return [] if item.payer is None else list(item.payer.billing.named_budgets)


def _fits(entry: Entry, item: Item) -> bool:
    """Return True if a cached row has the dtype and width that all callers of an item expect."""
    width = len(entry.vector)
    return all(
        entry.vector.dtype == waiter.ticket.vector_format.numpy_dtype
        and waiter.ticket.vector_format.width in (None, width)
        and waiter.ticket.rows.width in (None, width)
        for waiter in item.waiters
    )
