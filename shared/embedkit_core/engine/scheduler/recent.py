"""Rows finished while somebody was looking them up, so that a miss that raced a finish is not paid for again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from embedkit_core.common.types import Cache, Vectors
from embedkit_core.engine.scheduler.queues import Request


class RecentRow(NamedTuple):
    """A row finished while somebody was looking it up, and the caches that have it."""

    sequence: int
    row: Vectors
    truncated: bool
    caches: list[Cache]


class RecentRows:
    """The rows finished since the oldest open look-up began.

    `lookups` is written by caller threads: each open cache look-up notes `sequence` there before it reads and goes
    when its misses are submitted.
    """

    def __init__(self) -> None:
        self.lookups: dict[object, int] = {}
        self.sequence = 0
        self._rows: dict[bytes, RecentRow] = {}

    def open(self, lookup: object) -> int:
        """Keep the rows that are completed from now on for a cache look-up. Return how often any were completed."""
        sequence = self.lookups[lookup] = self.sequence
        return sequence

    def close(self, lookup: object) -> None:
        """Keep nothing more for a look-up."""
        self.lookups.pop(lookup, None)

    def add(self, request: Request) -> None:
        """Remember the rows of a request that are kept, while anybody is looking."""
        self.sequence += 1
        if not self.lookups or request.rows is None:
            return
        for place, item in enumerate(request.done):
            self._rows.pop(item.key, None)  # the oldest stay in front
            self._rows[item.key] = RecentRow(self.sequence, request.rows[place], request.truncated[place], item.caches)

    def get(self, key: bytes) -> RecentRow | None:
        """Give a row finished a moment ago."""
        return self._rows.get(key)

    def forget(self) -> None:
        """Let go of the rows that were finished before every open look-up began."""
        oldest = min(list(self.lookups.values()), default=None)
        while self._rows:
            key, recent = next(iter(self._rows.items()))
            if oldest is not None and recent.sequence > oldest:
                return
            del self._rows[key]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._rows)
