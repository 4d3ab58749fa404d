"""The waiting texts of one lane: queries, bulk, and halves of refused batches."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil

from embedkit_core.common.types import Batch, Cache, Vectors
from embedkit_core.engine.batching import MAX_TEXTS, MIN_TEXTS, RequestCapacity, texts_per_request
from embedkit_core.engine.rate_limits.controller import RateController, SentRequest
from embedkit_core.engine.scheduler.items import AtomicBatch, Item, RequestSpec, Ticket

SURELY_TOO_LONG_FACTOR = 1.5  # times the limit: an estimate that is calibrated by bills is not so far off


@dataclass(slots=True, eq=False)
class Request:
    """One request under way, and once it is answered the items it finished, their rows, and who has kept them.

    `batch` and `sent` are made when it is sent: until a rate limiter lets it, its items may still lose their callers.
    """

    queue: RequestQueue
    items: list[Item]
    batch: Batch = field(init=False, repr=False)
    sent: SentRequest = field(init=False, repr=False)
    done: list[Item] = field(default_factory=list)
    rows: Vectors | None = None
    truncated: list[bool] = field(default_factory=list)
    written_to: list[Cache] = field(default_factory=list)

    @property
    def payer(self) -> Ticket:
        """Who is charged for the request itself."""
        payer = self.items[0].payer
        assert payer is not None
        return payer

    @property
    def size(self) -> int:
        """The request's tokens, estimated."""
        return sum(item.size for item in self.items)

    def needs_another_commit(self) -> bool:
        """Tell whether a cache wants rows of this request that it has not been given."""
        return any(not _contains(cache, self.written_to) for item in self.done for cache in item.caches)

    def take_writes(self) -> list[tuple[Cache, list[int]]]:
        """Give each cache that is to keep rows of this request now, with their places in `done`."""
        keep: dict[int, tuple[Cache, list[int]]] = {}
        for place, item in enumerate(self.done):
            for cache in item.caches:
                if not _contains(cache, self.written_to):
                    keep.setdefault(id(cache), (cache, []))[1].append(place)
        self.written_to += [cache for cache, _ in keep.values()]
        return list(keep.values())


@dataclass(slots=True)
class Actions:
    """What the runtime must do.

    Acquire permits of rate limiters, send requests, commit rows to caches, wake callers, and poll again at `wake_at`.
    """

    acquire: list[Request] = field(default_factory=list)
    send: list[Request] = field(default_factory=list)
    commit: list[Request] = field(default_factory=list)
    wake: list[Ticket] = field(default_factory=list)
    wake_at: float | None = None


def _contains(cache: Cache, caches: list[Cache]) -> bool:
    return any(cache is other for other in caches)  # by identity: a cache of the user's may be equal to another


class RetryQueue:
    """Items that wait for their next try, kept out of the queues until a time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, list[Item]]] = []
        self._n = 0

    def add(self, items: list[Item], until: float) -> None:
        """Take items that no queue holds."""
        self._n += 1
        heapq.heappush(self._heap, (until, self._n, items))
        for item in items:
            item.location = None

    def due(self, now: float) -> Iterator[Item]:
        """Give back the items whose time has come, in the order in which they go to the front of a queue."""
        while self._heap and self._heap[0][0] <= now:
            yield from reversed(heapq.heappop(self._heap)[2])

    def next_due(self) -> list[float]:
        """Give the time of the next try, if there is one."""
        return [until for until, _, _ in self._heap[:1]]

    def items(self) -> list[Item]:
        """Give all that wait."""
        return [item for _, _, items in self._heap for item in items]


class RequestQueue:
    """What waits in one lane, and what is known of it.

    Queues may hold stale entries: an item is in the one its `home` names and nowhere else. `proven` says that the
    lane answers: until then one small request at a time goes out, so that a wrong key, model or parameter costs one
    request and not a burst. `refused` counts refusals of texts since the last answer, `doubts` those among them that
    came one at a time. `asking` is the one request that waits for its rate limiter: what comes meanwhile, a query say,
    must not find a row of others before it. `busy` is told of each lane in which something waits; `pace` is that of the
    model, which other lanes share.
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
        self.in_flight = 0
        self.awaiting_permit: Request | None = None
        self.planned_texts = MIN_TEXTS
        self.groups: deque[AtomicBatch] = deque()
        self._queries: deque[Item] = deque()
        self._bulk: deque[Item] = deque()
        self._counts = {id(self._queries): 0, id(self._bulk): 0}
        self._tokens = dict(self._counts)

    def _queue(self, *, urgent: bool) -> deque[Item]:
        return self._queries if urgent else self._bulk

    def count(self, *, urgent: bool) -> int:
        """Give how many single items wait."""
        return self._counts[id(self._queue(urgent=urgent))]

    def ready(self, *, urgent: bool) -> bool:
        """Tell whether a request of this kind could go out now."""
        if self.awaiting_permit is not None:
            return False
        if self.in_flight and not self.verified:
            return False
        self.groups = deque(g for g in self.groups if any(item.location is g for item in g.items))
        return self.count(urgent=urgent) > 0 or any(group.is_query == urgent for group in self.groups)

    def enter(self, items: Iterable[Item], *, front: bool = False) -> None:
        """Put items in the queue of their kind."""
        self.busy[self] = None
        for item in reversed(list(items)) if front else items:
            queue = self._queue(urgent=item.is_query)
            (queue.appendleft if front else queue.append)(item)
            item.location = queue
            self._counts[id(queue)] += 1
            self._tokens[id(queue)] += item.size

    def enter_group(self, group: AtomicBatch) -> None:
        """Put items that travel together before everything else, other groups too: a search goes deep first."""
        for item in group.items:
            item.location = group
        if group.items:
            self.busy[self] = None
            self.groups.appendleft(group)

    def is_surely_too_long(self, size: int) -> bool:
        """Tell whether a text of so many estimated tokens is far over what the model takes."""
        limit = self.spec.limits.text_tokens
        return limit is not None and self.rate_controller.tokens(size) > SURELY_TOO_LONG_FACTOR * limit

    @property
    def has_waiting(self) -> bool:
        """Tell whether anything waits here."""
        return bool(self.groups) or any(self._counts.values())

    @property
    def waiting_texts(self) -> int:
        """The texts that wait here."""
        grouped = sum(len(self._wanted(group)) for group in self.groups)
        return grouped + sum(self._counts.values())

    def tidy(self) -> None:
        """Let go of stale entries where they are more than what waits."""
        for queue in (self._queries, self._bulk):
            if len(queue) > 2 * self._counts[id(queue)] + 64:
                kept = [item for item in queue if item.location is queue]
                queue.clear()
                queue.extend(kept)

    def leave(self, item: Item) -> None:
        """Take an item out of wherever it waits; its entry there goes stale."""
        if id(item.location) in self._counts:
            self._counts[id(item.location)] -= 1
            self._tokens[id(item.location)] -= item.size
        item.location = None

    def take_unsent(self, item: Item) -> bool:
        """Remove an item that is not sent yet. Return False if it is in flight or between two tries."""
        if self.awaiting_permit is not None and item in self.awaiting_permit.items:
            self.awaiting_permit.items.remove(item)
        elif item.location is None:
            return False
        self.leave(item)
        return True

    def promote(self, item: Item) -> None:
        """Make a waiting bulk item a query."""
        item.is_query = True
        if item.location is not None:
            self.leave(item)
            self.enter([item])

    def plan_requests(self, free_slots: int, now: float) -> None:
        """Fix how many texts the requests of the bulk that waits now should hold."""
        texts = min(MAX_TEXTS, self.capacity.texts)
        tokens = self._max_tokens(now)
        waiting = self.count(urgent=False)
        self.planned_texts = texts_per_request(
            waiting, free_slots, texts, tokens=self._tokens[id(self._bulk)], cap_tokens=tokens
        )

    def next_capacity(self, *, urgent: bool, free_slots: int, now: float) -> tuple[int, float]:
        """Give how many texts and tokens the next request of this kind may hold."""
        tokens = self._max_tokens(now)
        if not self.verified:
            return min(MIN_TEXTS, self.capacity.texts), tokens
        texts = self.planned_texts
        if urgent:
            texts = texts_per_request(self.count(urgent=True), free_slots, min(MAX_TEXTS, self.capacity.texts))
        if self.rate_controller.requests_are_limiting(now):
            size = self._tokens[id(self._queue(urgent=urgent))]
            texts = max(texts, ceil(self.count(urgent=urgent) / self.rate_controller.optimal_requests(size)))
        return min(self.rate_controller.max_texts(texts), self.capacity.texts), tokens

    def _max_tokens(self, now: float) -> float:
        return min(
            self.capacity.tokens / max(1.0, self.rate_controller.tokens_per_estimated),
            self.rate_controller.max_tokens(now),
        )

    def next_size(self, *, urgent: bool, free_slots: int, now: float) -> int:
        """Give the tokens of the next request of this kind, estimated."""
        for group in self.groups:
            if group.is_query == urgent and (items := self._wanted(group)):
                return sum(item.size for item in items)
        queue = self._queue(urgent=urgent)
        texts, tokens = self.next_capacity(urgent=urgent, free_slots=free_slots, now=now)
        size = count = 0
        for item in queue:
            if item.location is not queue or not item.waiters:
                continue
            if count == texts or (count and size + item.size > tokens):
                break
            size += item.size
            count += 1
        return size

    @staticmethod
    def _wanted(group: AtomicBatch) -> list[Item]:
        return [item for item in group.items if item.location is group and item.waiters]

    def take(self, *, urgent: bool, free_slots: int, now: float) -> AtomicBatch | None:
        """Take out the texts of the next request of this kind: a group as it is, else what fits from the queue.

        Nothing over the room goes together; a text longer than the model takes travels alone, so that its refusal
        is its own.
        """
        for group in [g for g in self.groups if g.is_query == urgent]:
            self.groups.remove(group)
            wanted = self._wanted(group)
            for item in group.items:
                if item.location is group:
                    self.leave(item)
            if wanted:
                return AtomicBatch(wanted, urgent)
        texts, tokens = self.next_capacity(urgent=urgent, free_slots=free_slots, now=now)
        items = self._pick(urgent=urgent, texts=texts, most_tokens=tokens)
        return AtomicBatch(items, urgent) if items else None

    def _pick(self, *, urgent: bool, texts: int, most_tokens: float) -> list[Item]:
        queue = self._queue(urgent=urgent)
        picked: list[Item] = []
        tokens = 0
        while queue and len(picked) < texts:
            item = queue[0]
            if item.location is queue and not item.waiters:
                self.leave(item)
            if item.location is queue:
                alone = item.size > self.capacity.text_tokens
                if picked and (alone or tokens + item.size > most_tokens):
                    break
                self.leave(item)
                picked.append(item)
                tokens += item.size
                if alone:
                    queue.popleft()
                    break
            queue.popleft()
        return picked
