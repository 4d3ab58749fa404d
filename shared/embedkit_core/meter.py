"""Live usage: the one mutable counter that caller threads and the engine write to."""

from __future__ import annotations

from embedkit_core.forks import ForkLock
from embedkit_core.types import Usage


class Meter:
    """A running total of `Usage`, safe to add to from any thread.

    What every call counts is kept in plain numbers: adding two `Usage` takes longer than looking up a query.
    """

    __slots__ = ("_billed", "_cache_hits", "_duplicates", "_failed", "_joined", "_lock", "_sent", "_texts")

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._texts = self._cache_hits = self._duplicates = self._joined = self._sent = self._failed = 0
        self._billed = Usage()

    def add(self, usage: Usage) -> None:
        """Add to the total."""
        with self._lock.lock:
            self._billed += usage

    def count(self, texts: int, cache_hits: int, duplicates: int, joined: int, sent: int, failed: int) -> None:
        """Add what became of the texts of one call."""
        with self._lock.lock:
            self._texts += texts
            self._cache_hits += cache_hits
            self._duplicates += duplicates
            self._joined += joined
            self._sent += sent
            self._failed += failed

    def read(self) -> Usage:
        """Give the total so far."""
        with self._lock.lock:
            texts = Usage(self._texts, self._cache_hits, self._duplicates, self._joined, self._sent, self._failed)
            return texts + self._billed
