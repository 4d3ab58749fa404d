"""Delays between retries. No I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass

from embedkit_core.common.errors import ProviderError
from embedkit_core.engine.rate_limits.provider_limits import MAX_STATED_WAIT


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
