"""Live usage: a mutable counter that caller threads and the engine update."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.usage import Usage
from embedkit_core.costs.tokens import cost_or_none


class TextCounts(NamedTuple):
    """Outcomes of the texts of a call, as `Usage` counts them; `saved_tokens` is an estimate for the cache hits."""

    texts: int
    cache_hits: int
    duplicates: int
    coalesced: int
    sent: int
    failed: int
    empty: int
    saved_tokens: int


class Meter:
    """A running total of `Usage` at one price. Thread-safe.

    The counts of each call are plain integers, because adding two `Usage` takes longer than a cache hit.

    Args:
        price: USD per million tokens. None if unknown.
    """

    __slots__ = (
        "_billed",
        "_cache_hits",
        "_coalesced",
        "_duplicates",
        "_empty",
        "_failed",
        "_lock",
        "_price",
        "_saved",
        "_sent",
        "_texts",
    )

    def __init__(self, price: Decimal | None = None) -> None:
        self._lock = ForkLock()
        self._price = price
        self._texts = self._cache_hits = self._duplicates = self._coalesced = self._sent = self._failed = 0
        self._empty = self._saved = 0
        self._billed = Usage()

    def add(self, usage: Usage) -> None:
        """Add billed usage to the total."""
        with self._lock.lock:
            self._billed += usage

    def count(self, counts: TextCounts) -> None:
        """Add the text counts of one call."""
        texts, cache_hits, duplicates, coalesced, sent, failed, empty, saved = counts
        with self._lock.lock:
            self._texts += texts
            self._cache_hits += cache_hits
            self._duplicates += duplicates
            self._coalesced += coalesced
            self._sent += sent
            self._failed += failed
            self._empty += empty
            self._saved += saved

    def read(self) -> Usage:
        """Return the total so far."""
        with self._lock.lock:
            counts = TextCounts(
                self._texts,
                self._cache_hits,
                self._duplicates,
                self._coalesced,
                self._sent,
                self._failed,
                self._empty,
                self._saved,
            )
            return usage_of(counts, self._price) + self._billed


def usage_of(counts: TextCounts, price: Decimal | None) -> Usage:
    """Return the usage for text counts, including the savings of the cache hits at a price."""
    saved = counts.saved_tokens
    return Usage(*counts[:-1], saved_tokens=saved, saved_usd=cost_or_none(saved, price))
