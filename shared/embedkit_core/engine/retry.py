"""When to try again: plain policy, the random source passed in."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

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
