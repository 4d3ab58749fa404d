"""Live usage: the one mutable counter that caller threads and the engine write to."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.usage import MILLION, Usage


class TextCounts(NamedTuple):
    """What became of the texts of a call, as `Usage` has it; `saved_tokens` are those of the hits, estimated."""

    texts: int
    cache_hits: int
    duplicates: int
    coalesced: int
    sent: int
    failed: int
    saved_tokens: int


class Meter:
    """A running total of `Usage` at one price, USD per million tokens or None; safe to add to from any thread.

    What every call counts is kept in plain numbers: adding two `Usage` takes longer than looking up a query.
    """

    __slots__ = (
        "_billed",
        "_cache_hits",
        "_duplicates",
        "_failed",
        "_joined",
        "_lock",
        "_price",
        "_saved",
        "_sent",
        "_texts",
    )

    def __init__(self, price: Decimal | None = None) -> None:
        self._lock = ForkLock()
        self._price = price
        self._texts = self._cache_hits = self._duplicates = self._joined = self._sent = self._failed = self._saved = 0
        self._billed = Usage()

    def add(self, usage: Usage) -> None:
        """Add to the total."""
        with self._lock.lock:
            self._billed += usage

    def count(self, counts: TextCounts) -> None:
        """Add what became of the texts of one call."""
        texts, cache_hits, duplicates, joined, sent, failed, saved = counts
        with self._lock.lock:
            self._texts += texts
            self._cache_hits += cache_hits
            self._duplicates += duplicates
            self._joined += joined
            self._sent += sent
            self._failed += failed
            self._saved += saved

    def read(self) -> Usage:
        """Give the total so far."""
        with self._lock.lock:
            told = TextCounts(
                self._texts,
                self._cache_hits,
                self._duplicates,
                self._joined,
                self._sent,
                self._failed,
                self._saved,
            )
            return usage_of(told, self._price) + self._billed


def usage_of(counts: TextCounts, price: Decimal | None) -> Usage:
    """Give the usage of texts by what became of them, and what the hits among them saved at a price."""
    saved = counts.saved_tokens
    return Usage(*counts[:-1], saved_tokens=saved, saved_usd=cost_of(saved, price))


def cost_of(tokens: int, price: Decimal | None) -> Decimal | None:
    """Give what so many tokens cost, None where there are any and their price is unknown."""
    if price is None:
        return None if tokens else Decimal(0)
    return tokens * price / MILLION
