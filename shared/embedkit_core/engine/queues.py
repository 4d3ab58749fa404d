"""The waiting texts of one lane: queries, bulk, and halves of refused batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from embedkit_core.engine.items import Group, Item, Lane
from embedkit_core.engine.packing import FLOOR_TEXTS, Room, spread


class LaneQueue:
    """What waits in one lane, and what is known of it.

    Queues may hold stale entries: an item is in the one its `home` names and nowhere else. `proven` says that the
    lane answers: until then one small request at a time goes out, so that a wrong key, model or parameter costs one
    request and not a burst. `refused` counts refusals of texts since the last answer, `doubts` those among them that
    came one at a time. `busy` is told of each lane in which something waits.
    """

    def __init__(self, lane: Lane, busy: dict[LaneQueue, None]) -> None:
        self.lane = lane
        self.busy = busy
        self.room = Room.of(lane.limits)
        self.dimensions = lane.dimensions
        self.proven = False
        self.refused = 0
        self.doubts = 0
        self.in_flight = 0
        self.job_texts = FLOOR_TEXTS
        self.groups: deque[Group] = deque()
        self._urgent: deque[Item] = deque()
        self._bulk: deque[Item] = deque()
        self._counts = {id(self._urgent): 0, id(self._bulk): 0}

    def _queue(self, *, urgent: bool) -> deque[Item]:
        return self._urgent if urgent else self._bulk

    def count(self, *, urgent: bool) -> int:
        """Give how many single items wait."""
        return self._counts[id(self._queue(urgent=urgent))]

    def ready(self, *, urgent: bool) -> bool:
        """Tell whether a request of this kind could go out now."""
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

    def enter_group(self, group: Group) -> None:
        """Put items that travel together before everything else, other groups too: a search goes deep first."""
        for item in group.items:
            item.home = group
        if group.items:
            self.busy[self] = None
            self.groups.appendleft(group)

    @property
    def waits(self) -> bool:
        """Tell whether anything waits here."""
        return bool(self.groups) or any(self._counts.values())

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
        item.home = None

    def promote(self, item: Item) -> None:
        """Make a waiting bulk item a query."""
        item.urgent = True
        if item.home is not None:
            self.leave(item)
            self.enter([item])

    def plan_job(self, free_slots: int) -> None:
        """Fix how many texts the requests of the bulk that waits now should hold."""
        self.job_texts = spread(self.count(urgent=False), free_slots, self.room.texts)

    def take(self, *, urgent: bool, free_slots: int) -> Group | None:
        """Take out the texts of the next request of this kind: a group as it is, else what fits from the queue.

        Nothing over the room goes together; a text longer than the model takes travels alone, so that its refusal
        is its own.
        """
        for group in [g for g in self.groups if g.urgent == urgent]:
            self.groups.remove(group)
            items = [item for item in group.items if item.home is group]
            for item in items:
                self.leave(item)
            wanted = [item for item in items if item.waiters]
            if wanted:
                return Group(wanted, urgent)
        texts = spread(self.count(urgent=True), free_slots, self.room.texts) if urgent else self.job_texts
        items = self._pick(urgent=urgent, texts=min(texts, self.room.texts) if self.proven else FLOOR_TEXTS)
        return Group(items, urgent) if items else None

    def _pick(self, *, urgent: bool, texts: int) -> list[Item]:
        queue = self._queue(urgent=urgent)
        picked: list[Item] = []
        tokens = 0
        while queue and len(picked) < min(texts, self.room.texts):
            item = queue[0]
            if item.home is queue and not item.waiters:
                self.leave(item)
            if item.home is queue:
                alone = item.size > self.room.text_tokens
                if picked and (alone or tokens + item.size > self.room.tokens):
                    break
                self.leave(item)
                picked.append(item)
                tokens += item.size
                if alone:
                    queue.popleft()
                    break
            queue.popleft()
        return picked
