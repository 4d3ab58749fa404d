"""When to try again: plain policy, the random source passed in."""

from __future__ import annotations

import email.utils
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC

from embedkit_core.errors import ProviderError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full jitter: the k-th retry waits uniform(0, min(cap, base * 2**k)) seconds, or what the server asks for.

    Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base: float = 0.5
    cap: float = 30.0
    retry_after_cap: float = 120.0

    def delay(self, failures: int, error: ProviderError, rng: random.Random) -> float:
        """Give the seconds to wait after the given number of failures."""
        if error.retry_after is not None and not math.isnan(error.retry_after):
            return min(max(error.retry_after, 0.0), self.retry_after_cap)
        return rng.uniform(0.0, min(self.cap, self.base * 2 ** min(failures, 16)))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Read how many seconds a server asks to wait, from `retry-after-ms` or `retry-after` (seconds or an HTTP date).

    `now` is the wall-clock time in seconds since the epoch; header names are lower case.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)
