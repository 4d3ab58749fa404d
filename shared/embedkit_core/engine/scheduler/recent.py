"""Rows completed during open cache look-ups, so that a miss that raced a commit is not billed again. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from embedkit_core.common.types import Cache, Vectors
from embedkit_core.engine.scheduler.queues import Request


class RecentRow(NamedTuple):
    """A row completed during a cache look-up, and the caches that have it."""

    sequence: int
    row: Vectors
    truncated: bool
    caches: list[Cache]


class RecentRows:
    """The rows completed since the oldest open look-up began.

    Attributes:
        lookups: The value of `sequence` at the start of each open look-up. Caller threads write it: they add a look-up
            before they read the cache and remove it when its misses are submitted.
        sequence: The number of completed requests.
    """

    def __init__(self) -> None:
        self.lookups: dict[object, int] = {}
        self.sequence = 0
        self._rows: dict[bytes, RecentRow] = {}

    def open(self, lookup: object) -> int:
        """Open a cache look-up: keep the rows completed from now on. Return the current `sequence`."""
        sequence = self.lookups[lookup] = self.sequence
        return sequence

    def close(self, lookup: object) -> None:
        """Close a look-up."""
        self.lookups.pop(lookup, None)

    def add(self, request: Request) -> None:
        """Remember the committed rows of a request while a look-up is open."""
        self.sequence += 1
        if not self.lookups or request.rows is None:
            return
        for index, item in enumerate(request.done):
            self._rows.pop(item.key, None)  # insertion order is the order of completion
            self._rows[item.key] = RecentRow(self.sequence, request.rows[index], request.truncated[index], item.caches)

    def get(self, key: bytes) -> RecentRow | None:
        """Return a recently completed row, None if there is none."""
        return self._rows.get(key)

    def forget(self) -> None:
        """Drop the rows that were completed before every open look-up began."""
        oldest = min(list(self.lookups.values()), default=None)
        while self._rows:
            key, recent = next(iter(self._rows.items()))
            if oldest is not None and recent.sequence > oldest:
                return
            del self._rows[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._rows)
