"""Delays between retries, and the items that wait for one. No I/O."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

from embedkit_core.common.errors import ProviderError
from embedkit_core.engine.rate_limits.provider_limits import MAX_STATED_WAIT
from embedkit_core.engine.scheduler.items import Item


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter, or the server's `Retry-After`.

    Retry k waits uniform(0, min(cap, base * 2**k)) seconds. A `Retry-After` is used as it is, between
    minimum * 2**k and `retry_after_cap` seconds.

    Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base: float = 0.5
    cap: float = 30.0
    minimum: float = 0.01
    retry_after_cap: float = MAX_STATED_WAIT

    def longest(self, retries: int) -> float:
        """Return the longest time that so many retries wait in total, if the server states no times."""
        return sum(min(self.cap, self.base * 2.0 ** min(failures, 16)) for failures in range(retries))

    def delay(self, failures: int, error: ProviderError, rng: random.Random) -> float:
        """Return the seconds until the retry after so many earlier failures."""
        doubled: float = 2.0 ** min(failures, 16)
        retry_after = error.retry_after
        if retry_after is not None and retry_after > 0:  # 0, a past date and NaN carry no information
            return min(max(retry_after, self.minimum * doubled), self.retry_after_cap)
        return rng.uniform(0.0, min(self.cap, self.base * doubled))


class RetryQueue:
    """Items that wait for a retry, kept out of the request queues until then."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, list[Item]]] = []
        self._n = 0

    def add(self, items: list[Item], until: float) -> None:
        """Add items that are in no queue."""
        self._n += 1
        heapq.heappush(self._heap, (until, self._n, items))
        for item in items:
            item.location = None

    def due(self, now: float) -> Iterator[Item]:
        """Remove and yield the items that are due, in the order in which they go to the front of a queue."""
        while self._heap and self._heap[0][0] <= now:
            yield from reversed(heapq.heappop(self._heap)[2])

    def next_due(self) -> list[float]:
        """Return the time of the next retry as a list; empty if there is none."""
        return [until for until, _, _ in self._heap[:1]]

    def items(self) -> list[Item]:
        """Return all waiting items."""
        return [item for _, _, items in self._heap for item in items]
