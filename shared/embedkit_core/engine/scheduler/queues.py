"""Queues of waiting texts, one for each request spec: queries, bulk, and halves of refused batches. No I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from embedkit_core.common.types import NO_LIMITS, Batch, Cache, Vectors
from embedkit_core.coordination.opening import CoordinatorHandle
from embedkit_core.coordination.port import Begin, Bill, End, LeaseID
from embedkit_core.engine.batching import MAX_TEXTS, MAX_TOKENS, MIN_TEXTS, RequestCapacity, texts_per_request
from embedkit_core.engine.rate_limits.controller import RateController, SentRequest
from embedkit_core.engine.rate_limits.provider_limits import CLOCK_RESOLUTION
from embedkit_core.engine.rate_limits.user_limits import Backlog
from embedkit_core.engine.scheduler.items import AtomicBatch, Item, RequestSpec, Ticket

MAX_FAILED_ROUNDS = 6  # in a row; then one request at a time is sent
PROBED_TEXTS = 8 * MIN_TEXTS  # other texts that are sent before those of a failed probe
SURELY_TOO_LONG_FACTOR = 1.5  # times the limit: a calibrated estimate is more precise than that


@dataclass(slots=True, eq=False)
class Request:
    """One request and, after its reply, the completed items with their rows.

    Attributes:
        queue: The queue its items came from.
        items: The items it sends. Until it is sent, items without callers are removed.
        batch: The texts and body for the provider; set when it is sent.
        sent: Its record for the rate controller; set when it is sent.
        done: The items that its reply completes.
        rows: Their vectors, (len(done), width); None before the reply.
        truncated: For each item in `done`, whether its text was truncated.
        response_model: The name of the model, as far as the reply states it.
        written_to: The caches that have its rows, or that the writer thread is writing them to.
        unstored: The number of commits whose rows other machines cannot read yet.
        delivered: True if its rows were handed out.
        begin: What the coordinator was asked for; None without one.
        lease: The coordinator's lease, until its end.
        sent_at: The time at which it was handed to the client; None before.
        billed: The billed tokens, as far as the reply states them.
        bills: What it cost in named budgets.
    """

    queue: RequestQueue
    items: list[Item]
    batch: Batch = field(init=False, repr=False)
    sent: SentRequest = field(init=False, repr=False)
    done: list[Item] = field(default_factory=list)
    rows: Vectors | None = None
    truncated: list[bool] = field(default_factory=list)
    response_model: str | None = None
    written_to: list[Cache] = field(default_factory=list)
    unstored: int = 0
    delivered: bool = False
    begin: Begin | None = field(default=None, repr=False)
    lease: LeaseID | None = None
    sent_at: float | None = None
    billed: int | None = None
    bills: dict[str, Bill] = field(default_factory=dict)

    @property
    def payer(self) -> Ticket:
        """The ticket that the request itself is booked on."""
        payer = self.items[0].payer
        assert payer is not None
        return payer

    @property
    def size(self) -> int:
        """The estimated tokens of the request."""
        return sum(item.size for item in self.items)

    @property
    def is_query(self) -> bool:
        """True if all of its texts are queries."""
        return all(item.is_query for item in self.items)

    def needs_another_commit(self) -> bool:
        """Return True if a cache of an item has not been written to yet."""
        return any(not _contains(cache, self.written_to) for item in self.done for cache in item.caches)

    def take_writes(self) -> list[tuple[Cache, list[int]]]:
        """Return the caches to write to now, each with its rows as indices of `done`. Mark them as written to."""
        writes: dict[int, tuple[Cache, list[int]]] = {}
        for index, item in enumerate(self.done):
            for cache in item.caches:
                if not _contains(cache, self.written_to):
                    writes.setdefault(id(cache), (cache, []))[1].append(index)
        self.written_to += [cache for cache, _ in writes.values()]
        return list(writes.values())


@dataclass(slots=True)
class Outage:
    """The transient failures of a queue since the server's last reply or refusal of a text.

    A probe is a request whose failure leaves none of the queue in flight, and which was sent when the backoff after
    the last probe was over. So probes are as far apart as the retries of one text.

    Attributes:
        rounds: The failures, counting only once those of requests that were in flight together.
        last_round_at: The time of the first failure of the last round.
        probes: The times at which the failed probes were sent.
        next_probe_at: The end of the backoff after the last probe.
    """

    rounds: int = 0
    last_round_at: float = -math.inf
    probes: list[float] = field(default_factory=list)
    next_probe_at: float = -math.inf


@dataclass(slots=True)
class Actions:
    """The actions that the runtime must take after a poll.

    Attributes:
        acquire: Requests to acquire a rate limiter's permit for.
        begin: Requests to ask their coordinator for.
        end: Leases to end, each with its coordinator.
        check: Leases of other processes, by coordinator: which of them have ended?
        look_up: Items whose caches are to be read again, in groups.
        send: Requests to send.
        commit: Requests whose rows are to be written to caches.
        wake: Completed tickets, whose callers are to be woken.
        wake_at: The time of the next poll; None if no event is due.
    """

    acquire: list[Request] = field(default_factory=list)
    begin: list[Request] = field(default_factory=list)
    end: list[tuple[CoordinatorHandle, End]] = field(default_factory=list)
    check: list[tuple[CoordinatorHandle, list[LeaseID]]] = field(default_factory=list)
    look_up: list[list[Item]] = field(default_factory=list)
    send: list[Request] = field(default_factory=list)
    commit: list[Request] = field(default_factory=list)
    wake: list[Ticket] = field(default_factory=list)
    wake_at: float | None = None


def _contains(cache: Cache, caches: list[Cache]) -> bool:
    return any(cache is other for other in caches)  # by identity: a user's cache may define __eq__


class RequestQueue:
    """The waiting texts of one request spec.

    The deques may have stale entries: an item is only where its `location` says.

    Attributes:
        spec: The spec of the requests.
        busy: The queues of the account with waiting texts; shared by all of them, and ordered by their turn.
        rate_controller: The rate controller of the model, shared with its other queues.
        capacity: How much a request may hold.
        width: The number of values in a row; None before the first reply.
        verified: True after a successful reply. Until then one small request is sent at a time, so that a wrong key,
            model or parameter costs one request and not a burst.
        consecutive_refusals: Refusals of texts or sizes since the last reply.
        probe_failures: Those among them that were sent one at a time, each with other texts than the one before.
        refused_keys: The keys of the texts of the last refusal.
        outage: The transient failures in a row.
        in_flight: The requests of the queue that are in flight.
        awaiting_permit: The one request that waits for a rate limiter's permit. There is only one, so that a query
            that arrives meanwhile does not wait behind several.
        scheduled: The requests that wait for the time of their permit from the coordinator. While there is one, no more
            bulk is asked for.
        planned_texts: How many texts a bulk request should hold.
        groups: Halves of refused batches.
    """

    def __init__(self, spec: RequestSpec, busy: dict[RequestQueue, None], rate_controller: RateController) -> None:
        self.spec = spec
        self.busy = busy
        self.rate_controller = rate_controller
        self.capacity = RequestCapacity.from_limits(spec.limits)
        self.width = spec.width
        self.verified = False
        self.consecutive_refusals = 0
        self.probe_failures = 0
        self.refused_keys: frozenset[bytes] = frozenset()
        self.outage = Outage()
        self.in_flight = 0
        self.awaiting_permit: Request | None = None
        self.scheduled = 0
        self._delays = [(-math.inf, NO_LIMITS)] * 2  # for bulk and for queries
        self.planned_texts = MIN_TEXTS
        self.groups: deque[AtomicBatch] = deque()
        self._queries: deque[Item] = deque()
        self._bulk: deque[Item] = deque()
        self._counts = {id(self._queries): 0, id(self._bulk): 0}
        self._tokens = dict(self._counts)

    def _deque(self, *, is_query: bool) -> deque[Item]:
        return self._queries if is_query else self._bulk

    def count(self, *, is_query: bool) -> int:
        """Return the number of waiting items, without groups."""
        return self._counts[id(self._deque(is_query=is_query))]

    def ready(self, *, is_query: bool, now: float) -> bool:
        """Return True if a request with queries, or with bulk, could be sent now.

        During an outage, bulk waits for the next probe. Queries are few and have their own backoff.
        """
        if not self.verified and not is_query and now < self.outage.next_probe_at:
            return False
        if self.awaiting_permit is not None:
            return False
        if (self.scheduled and not is_query) or now < self.not_before(is_query=is_query):
            return False
        if self.in_flight and not self.verified:
            return False
        self.groups = deque(g for g in self.groups if any(item.location is g for item in g.items))
        return self.count(is_query=is_query) > 0 or any(group.is_query == is_query for group in self.groups)

    def delay(self, until: float, begin: Begin) -> None:
        """Do not ask the coordinator again before a time, unless the limits of the callers change."""
        self._delays[begin.is_query] = (until, begin.limits)

    def not_before(self, *, is_query: bool) -> float:
        """Return the time before which the coordinator is not asked again for queries, or for bulk."""
        until, limits = self._delays[is_query]
        return until if limits == self.rate_controller.user_limits.strictest else -math.inf

    def enter(self, items: Iterable[Item], *, front: bool = False) -> None:
        """Add items to the queries or the bulk."""
        self.busy[self] = None
        for item in reversed(list(items)) if front else items:
            queue = self._deque(is_query=item.is_query)
            (queue.appendleft if front else queue.append)(item)
            item.location = queue
            self._counts[id(queue)] += 1
            self._tokens[id(queue)] += item.size

    def enter_again(self, item: Item) -> None:
        """Put an item back after a transient failure: at the front, or during an outage behind the next probes.

        So that each probe has other texts: a text that makes the server fail must not look like an outage.
        """
        if not self.outage.probes:
            self.enter([item], front=True)
            return
        self.enter([item])
        queue = self._deque(is_query=item.is_query)
        queue.insert(PROBED_TEXTS, queue.pop())

    def record_failure(self, sent_at: float, next_probe_at: float, now: float) -> bool:
        """Count the transient failure of a request that is no longer in flight. Return True if it was a probe.

        Many rounds make the queue unverified: it goes back to one request at a time.

        Args:
            sent_at: The time at which it was sent.
            next_probe_at: The end of the backoff, if it was a probe.
            now: The current time.
        """
        outage = self.outage
        if sent_at >= outage.last_round_at:
            outage.rounds += 1
            outage.last_round_at = now
        if outage.rounds >= MAX_FAILED_ROUNDS:
            self.verified = False
        is_probe = self.in_flight == 0 and sent_at >= outage.next_probe_at - CLOCK_RESOLUTION
        if is_probe:
            outage.probes.append(sent_at)
            outage.next_probe_at = next_probe_at
        return is_probe

    def enter_group(self, group: AtomicBatch) -> None:
        """Add a group before everything else, other groups included: a bisection runs depth first."""
        for item in group.items:
            item.location = group
        if group.items:
            self.busy[self] = None
            self.groups.appendleft(group)

    def is_surely_too_long(self, size: int) -> bool:
        """Return True if a text of so many estimated tokens is far over the model's limit."""
        limit = self.spec.limits.text_tokens
        return limit is not None and self.rate_controller.tokens(size) > SURELY_TOO_LONG_FACTOR * limit

    @property
    def has_waiting(self) -> bool:
        """True if any text waits."""
        return bool(self.groups) or any(self._counts.values())

    @property
    def waiting_texts(self) -> int:
        """The number of waiting texts."""
        grouped = sum(len(self._wanted(group)) for group in self.groups)
        return grouped + sum(self._counts.values())

    def backlog(self) -> Backlog:
        """Return the requests and tokens of the waiting texts."""
        groups = [items for group in self.groups if (items := self._wanted(group))]
        total = Backlog(len(groups), len(groups), sum(item.size for items in groups for item in items))
        for queue, texts in ((self._queries, MIN_TEXTS), (self._bulk, self.planned_texts)):
            count, tokens = self._counts[id(queue)], self._tokens[id(queue)]
            usual = max(count / texts, tokens / min(self.capacity.tokens, MAX_TOKENS))
            fewest = max(count / self.capacity.texts, tokens / self.capacity.tokens)
            total = total.plus(Backlog(ceil(usual), ceil(fewest), tokens))
        return total._replace(tokens=total.tokens * self.rate_controller.tokens_per_estimated)

    def model_backlog(self) -> Backlog:
        """Return the backlog of all queues of the model; nothing if no caller has a limit, and it is not needed."""
        total = Backlog()
        if any(self.rate_controller.user_limits.strictest):
            for queue in self.busy:
                if queue.rate_controller is self.rate_controller:
                    total = total.plus(queue.backlog())
        return total

    def tidy(self) -> None:
        """Remove stale entries if there are more of them than waiting items."""
        for queue in (self._queries, self._bulk):
            if len(queue) > 2 * self._counts[id(queue)] + 64:
                kept = [item for item in queue if item.location is queue]
                queue.clear()
                queue.extend(kept)

    def leave(self, item: Item) -> None:
        """Remove an item from wherever it waits; its entry there becomes stale."""
        if id(item.location) in self._counts:
            self._counts[id(item.location)] -= 1
            self._tokens[id(item.location)] -= item.size
        item.location = None

    def take_unsent(self, item: Item) -> bool:
        """Remove an item that is not sent yet. Return False if it is in flight or waits for a retry."""
        if self.awaiting_permit is not None and item in self.awaiting_permit.items:
            self.awaiting_permit.items.remove(item)
        elif item.location is None:
            return False
        self.leave(item)
        return True

    def promote(self, item: Item) -> None:
        """Turn a waiting bulk item into a query."""
        item.is_query = True
        if item.location is not None:
            self.leave(item)
            self.enter([item])

    def plan_requests(self, free_slots: int, now: float) -> None:
        """Set how many texts the requests of the waiting bulk should hold."""
        texts = min(MAX_TEXTS, self.capacity.texts)
        tokens = self._max_tokens(now, self.model_backlog())
        waiting = self.count(is_query=False)
        self.planned_texts = texts_per_request(
            waiting, free_slots, texts, tokens=self._tokens[id(self._bulk)], cap_tokens=tokens
        )

    def next_capacity(self, *, is_query: bool, free_slots: int, now: float) -> tuple[int, float]:
        """Return how many texts and tokens the next request may hold."""
        backlog = self.model_backlog()
        tokens = self._max_tokens(now, backlog)
        if not self.verified:
            return min(MIN_TEXTS, self.capacity.texts), tokens
        texts = self.planned_texts
        if is_query:
            texts = texts_per_request(self.count(is_query=True), free_slots, min(MAX_TEXTS, self.capacity.texts))
        if self.rate_controller.requests_are_limiting(now, backlog):
            size = self._tokens[id(self._deque(is_query=is_query))]
            requests = self.rate_controller.optimal_requests(size, now, backlog)
            texts = max(texts, ceil(self.count(is_query=is_query) / requests))
        return min(self.rate_controller.max_texts(texts), self.capacity.texts), tokens

    def _max_tokens(self, now: float, backlog: Backlog) -> float:
        return min(
            self.capacity.tokens / max(1.0, self.rate_controller.tokens_per_estimated),
            self.rate_controller.max_tokens(now, backlog),
        )

    def next_size(self, *, is_query: bool, free_slots: int, now: float) -> int:
        """Return the estimated tokens of the next request."""
        for group in self.groups:
            if group.is_query == is_query and (items := self._wanted(group)):
                return sum(item.size for item in items)
        queue = self._deque(is_query=is_query)
        max_texts, max_tokens = self.next_capacity(is_query=is_query, free_slots=free_slots, now=now)
        size = count = 0
        for item in queue:
            if item.location is not queue or not item.waiters:
                continue
            if count == max_texts or (count and size + item.size > max_tokens):
                break
            size += item.size
            count += 1
        return size

    @staticmethod
    def _wanted(group: AtomicBatch) -> list[Item]:
        return [item for item in group.items if item.location is group and item.waiters]

    def take(self, *, is_query: bool, free_slots: int, now: float) -> AtomicBatch | None:
        """Remove and return the texts of the next request: a group as it is, else as many items as fit.

        A text over the model's limit is sent alone, so that no other text is refused with it.
        """
        for group in [g for g in self.groups if g.is_query == is_query]:
            self.groups.remove(group)
            wanted = self._wanted(group)
            for item in group.items:
                if item.location is group:
                    self.leave(item)
            if wanted:
                return AtomicBatch(wanted, is_query)
        max_texts, max_tokens = self.next_capacity(is_query=is_query, free_slots=free_slots, now=now)
        items = self._pick(is_query=is_query, max_texts=max_texts, max_tokens=max_tokens)
        return AtomicBatch(items, is_query) if items else None

    def _pick(self, *, is_query: bool, max_texts: int, max_tokens: float) -> list[Item]:
        queue = self._deque(is_query=is_query)
        picked: list[Item] = []
        tokens = 0
        while queue and len(picked) < max_texts:
            item = queue[0]
            if item.location is queue and not item.waiters:
                self.leave(item)
            if item.location is queue:
                alone = item.size > self.capacity.text_tokens
                if picked and (alone or tokens + item.size > max_tokens):
                    break
                self.leave(item)
                picked.append(item)
                tokens += item.size
                if alone:
                    queue.popleft()
                    break
            queue.popleft()
        return picked
