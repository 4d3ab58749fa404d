"""When to try again: plain policy, the random source passed in."""

from __future__ import annotations

import random
from dataclasses import dataclass

from embedkit_core.common.errors import ProviderError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full jitter: the k-th retry waits uniform(0, min(cap, base * 2**k)) seconds, or what the server asks for.

    A server that asks for next to nothing is waited for `least` * 2**k seconds all the same.

    Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    base: float = 0.5
    cap: float = 30.0
    minimum: float = 0.01
    retry_after_cap: float = 120.0

    def delay(self, failures: int, error: ProviderError, rng: random.Random) -> float:
        """Give the seconds to wait after the given number of failures."""
        doubled: float = 2.0 ** min(failures, 16)
        asked = error.retry_after
        if asked is not None and asked > 0:  # 0, a date that is past and what is no number say nothing
            return min(max(asked, self.minimum * doubled), self.retry_after_cap)
        return rng.uniform(0.0, min(self.cap, self.base * doubled))
