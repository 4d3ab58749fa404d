"""The waiting texts of one lane: queries, bulk, and halves of refused batches."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil

from embedkit_core.common.types import Batch, Cache, Vectors
from embedkit_core.engine.batching import CAP_TEXTS, FLOOR_TEXTS, Room, spread
from embedkit_core.engine.rate_limits.controller import Pace, Sent
from embedkit_core.engine.scheduler.items import Group, Item, Lane, Ticket

SURELY = 1.5  # times the limit: an estimate that is calibrated by bills is not so far off


@dataclass(slots=True, eq=False)
class Flight:
    """One request under way, and once it is answered the items it finished, their rows, and who has kept them.

    `batch` and `sent` are made when it is sent: until a rate limiter lets it, its items may still lose their callers.
    """

    lane: LaneQueue
    items: list[Item]
    batch: Batch = field(init=False, repr=False)
    sent: Sent = field(init=False, repr=False)
    done: list[Item] = field(default_factory=list)
    rows: Vectors | None = None
    flags: list[bool] = field(default_factory=list)
    kept: list[Cache] = field(default_factory=list)

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

    def late(self) -> bool:
        """Tell whether a cache wants rows of this request that it has not been given."""
        return any(not _among(cache, self.kept) for item in self.done for cache in item.caches)

    def to_keep(self) -> list[tuple[Cache, list[int]]]:
        """Give each cache that is to keep rows of this request now, with their places in `done`."""
        keep: dict[int, tuple[Cache, list[int]]] = {}
        for place, item in enumerate(self.done):
            for cache in item.caches:
                if not _among(cache, self.kept):
                    keep.setdefault(id(cache), (cache, []))[1].append(place)
        self.kept += [cache for cache, _ in keep.values()]
        return list(keep.values())


@dataclass(slots=True)
class Actions:
    """What the runtime must do.

    Acquire permits of rate limiters, send requests, commit rows to caches, wake callers, and poll again at `wake_at`.
    """

    acquire: list[Flight] = field(default_factory=list)
    send: list[Flight] = field(default_factory=list)
    commit: list[Flight] = field(default_factory=list)
    wake: list[Ticket] = field(default_factory=list)
    wake_at: float | None = None


def _among(cache: Cache, caches: list[Cache]) -> bool:
    return any(cache is other for other in caches)  # by identity: a cache of the user's may be equal to another


class Parked:
    """Items that wait for their next try, kept out of the queues until a time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, list[Item]]] = []
        self._n = 0

    def add(self, items: list[Item], until: float) -> None:
        """Take items that no queue holds."""
        self._n += 1
        heapq.heappush(self._heap, (until, self._n, items))
        for item in items:
            item.home = None

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


class LaneQueue:
    """What waits in one lane, and what is known of it.

    Queues may hold stale entries: an item is in the one its `home` names and nowhere else. `proven` says that the
    lane answers: until then one small request at a time goes out, so that a wrong key, model or parameter costs one
    request and not a burst. `refused` counts refusals of texts since the last answer, `doubts` those among them that
    came one at a time. `asking` is the one request that waits for its rate limiter: what comes meanwhile, a query say,
    must not find a row of others before it. `busy` is told of each lane in which something waits; `pace` is that of the
    model, which other lanes share.
    """

    def __init__(self, lane: Lane, busy: dict[LaneQueue, None], pace: Pace) -> None:
        self.lane = lane
        self.busy = busy
        self.pace = pace
        self.room = Room.of(lane.limits)
        self.width = lane.width
        self.proven = False
        self.refused = 0
        self.doubts = 0
        self.in_flight = 0
        self.asking: Flight | None = None
        self.job_texts = FLOOR_TEXTS
        self.groups: deque[Group] = deque()
        self._urgent: deque[Item] = deque()
        self._bulk: deque[Item] = deque()
        self._counts = {id(self._urgent): 0, id(self._bulk): 0}
        self._tokens = dict(self._counts)

    def _queue(self, *, urgent: bool) -> deque[Item]:
        return self._urgent if urgent else self._bulk

    def count(self, *, urgent: bool) -> int:
        """Give how many single items wait."""
        return self._counts[id(self._queue(urgent=urgent))]

    def ready(self, *, urgent: bool) -> bool:
        """Tell whether a request of this kind could go out now."""
        if self.asking is not None:
            return False
        if self.in_flight and not self.proven:
            return False
        self.groups = deque(g for g in self.groups if any(item.home is g for item in g.items))
        return self.count(urgent=urgent) > 0 or any(group.urgent == urgent for group in self.groups)

    def enter(self, items: Iterable[Item], *, front: bool = False) -> None:
        """Put items in the queue of their kind."""
        self.busy[self] = None
        for item in reversed(list(items)) if front else items:
            queue = self._queue(urgent=item.urgent)
            (queue.appendleft if front else queue.append)(item)
            item.home = queue
            self._counts[id(queue)] += 1
            self._tokens[id(queue)] += item.size

    def enter_group(self, group: Group) -> None:
        """Put items that travel together before everything else, other groups too: a search goes deep first."""
        for item in group.items:
            item.home = group
        if group.items:
            self.busy[self] = None
            self.groups.appendleft(group)

    def is_surely_too_long(self, size: int) -> bool:
        """Tell whether a text of so many estimated tokens is far over what the model takes."""
        limit = self.lane.limits.text_tokens
        return limit is not None and self.pace.tokens(size) > SURELY * limit

    @property
    def waits(self) -> bool:
        """Tell whether anything waits here."""
        return bool(self.groups) or any(self._counts.values())

    @property
    def waiting(self) -> int:
        """The texts that wait here."""
        grouped = sum(len(self._wanted(group)) for group in self.groups)
        return grouped + sum(self._counts.values())

    def tidy(self) -> None:
        """Let go of stale entries where they are more than what waits."""
        for queue in (self._urgent, self._bulk):
            if len(queue) > 2 * self._counts[id(queue)] + 64:
                kept = [item for item in queue if item.home is queue]
                queue.clear()
                queue.extend(kept)

    def leave(self, item: Item) -> None:
        """Take an item out of wherever it waits; its entry there goes stale."""
        if id(item.home) in self._counts:
            self._counts[id(item.home)] -= 1
            self._tokens[id(item.home)] -= item.size
        item.home = None

    def take_unsent(self, item: Item) -> bool:
        """Remove an item that is not sent yet. Return False if it is in flight or between two tries."""
        if self.asking is not None and item in self.asking.items:
            self.asking.items.remove(item)
        elif item.home is None:
            return False
        self.leave(item)
        return True

    def promote(self, item: Item) -> None:
        """Make a waiting bulk item a query."""
        item.urgent = True
        if item.home is not None:
            self.leave(item)
            self.enter([item])

    def plan_job(self, free_slots: int, now: float) -> None:
        """Fix how many texts the requests of the bulk that waits now should hold."""
        texts = min(CAP_TEXTS, self.room.texts)
        tokens = self._most_tokens(now)
        waiting = self.count(urgent=False)
        self.job_texts = spread(waiting, free_slots, texts, tokens=self._tokens[id(self._bulk)], cap_tokens=tokens)

    def room_now(self, *, urgent: bool, free_slots: int, now: float) -> tuple[int, float]:
        """Give how many texts and tokens the next request of this kind may hold."""
        tokens = self._most_tokens(now)
        if not self.proven:
            return min(FLOOR_TEXTS, self.room.texts), tokens
        texts = self.job_texts
        if urgent:
            texts = spread(self.count(urgent=True), free_slots, min(CAP_TEXTS, self.room.texts))
        if self.pace.requests_bind(now):
            size = self._tokens[id(self._queue(urgent=urgent))]
            texts = max(texts, ceil(self.count(urgent=urgent) / self.pace.requests_for(size)))
        return min(self.pace.most_texts(texts), self.room.texts), tokens

    def _most_tokens(self, now: float) -> float:
        return min(self.room.tokens / max(1.0, self.pace.tokens_each), self.pace.most_tokens(now))

    def next_size(self, *, urgent: bool, free_slots: int, now: float) -> int:
        """Give the tokens of the next request of this kind, estimated."""
        for group in self.groups:
            if group.urgent == urgent and (items := self._wanted(group)):
                return sum(item.size for item in items)
        queue = self._queue(urgent=urgent)
        texts, tokens = self.room_now(urgent=urgent, free_slots=free_slots, now=now)
        size = count = 0
        for item in queue:
            if item.home is not queue or not item.waiters:
                continue
            if count == texts or (count and size + item.size > tokens):
                break
            size += item.size
            count += 1
        return size

    @staticmethod
    def _wanted(group: Group) -> list[Item]:
        return [item for item in group.items if item.home is group and item.waiters]

    def take(self, *, urgent: bool, free_slots: int, now: float) -> Group | None:
        """Take out the texts of the next request of this kind: a group as it is, else what fits from the queue.

        Nothing over the room goes together; a text longer than the model takes travels alone, so that its refusal
        is its own.
        """
        for group in [g for g in self.groups if g.urgent == urgent]:
            self.groups.remove(group)
            wanted = self._wanted(group)
            for item in group.items:
                if item.home is group:
                    self.leave(item)
            if wanted:
                return Group(wanted, urgent)
        texts, tokens = self.room_now(urgent=urgent, free_slots=free_slots, now=now)
        items = self._pick(urgent=urgent, texts=texts, most_tokens=tokens)
        return Group(items, urgent) if items else None

    def _pick(self, *, urgent: bool, texts: int, most_tokens: float) -> list[Item]:
        queue = self._queue(urgent=urgent)
        picked: list[Item] = []
        tokens = 0
        while queue and len(picked) < texts:
            item = queue[0]
            if item.home is queue and not item.waiters:
                self.leave(item)
            if item.home is queue:
                alone = item.size > self.room.text_tokens
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
