"""User-configured requests and tokens per minute, enforced across all callers of a model. No I/O."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from embedkit_core.common.types import RateSettings
from embedkit_core.engine.rate_limits.provider_limits import MINUTE, TokenBucket

MIN_REQUEST_TOKENS = 2_000  # requests are not made smaller than this to fit a token limit
MAX_IDLE_PAIRS = 64  # bucket pairs of idle callers that are kept


class BucketPair(NamedTuple):
    """The two buckets of one caller's limits."""

    requests: TokenBucket
    tokens: TokenBucket


class UserLimits:
    """The bucket pairs of a model, one for each distinct pair of limits.

    Each request takes from all pairs, so that a minute is counted right whichever caller sends. Only the pairs of
    callers with pending work delay requests.
    """

    def __init__(self) -> None:
        self.share = 1
        self._callers: Counter[RateSettings] = Counter()
        self._pairs: dict[RateSettings, BucketPair] = {}

    def enter(self, rates: RateSettings, now: float) -> None:
        """Add a caller with pending work."""
        self._callers[rates] += 1
        if rates != RateSettings() and rates not in self._pairs:
            if len(self._pairs) >= MAX_IDLE_PAIRS:
                self._pairs = {key: pair for key, pair in self._pairs.items() if self._callers[key] > 0}
            self._pairs[rates] = BucketPair(
                _requests_bucket(rates.requests_per_minute, now), _tokens_bucket(rates.tokens_per_minute, now)
            )

    def leave(self, rates: RateSettings) -> None:
        """Remove a caller that has no pending work any more."""
        self._callers[rates] -= 1

    def binding(self) -> list[BucketPair]:
        """Return the pairs that can delay requests now."""
        return [pair for rates, pair in self._pairs.items() if self._callers[rates] > 0]

    def strictest(self) -> RateSettings:
        """Return the lowest limits among the callers with pending work."""
        active = [rates for rates, callers in self._callers.items() if callers > 0]
        requests = [rates.requests_per_minute for rates in active if rates.requests_per_minute is not None]
        tokens = [rates.tokens_per_minute for rates in active if rates.tokens_per_minute is not None]
        return RateSettings(min(requests, default=None), min(tokens, default=None))

    def wait(self, tokens: float, now: float) -> float:
        """Return the seconds until a request of so many tokens may be sent."""
        waits = [max(pair.requests.wait(1, now), pair.tokens.wait(tokens, now)) for pair in self.binding()]
        return max(waits, default=0.0)

    def take(self, requests: int, tokens: float, now: float) -> None:
        """Subtract a request and its tokens from all pairs; called again with the difference when it is billed."""
        for rates, pair in self._pairs.items():
            for bucket, amount in ((pair.requests, requests), (pair.tokens, tokens)):
                if self._callers[rates] <= 0:  # requests of other callers: a minute later they do not count any more
                    amount = min(amount, max(0.0, bucket.level(now) + MINUTE * (bucket.rate or 0.0)))
                bucket.take(amount, now)


# A bucket lets through its capacity and a minute of its rate in any minute: both together are the limit.


def _requests_bucket(per_minute: int | None, now: float) -> TokenBucket:
    bucket = TokenBucket()
    if per_minute is not None:
        capacity = max(per_minute / MINUTE, 1.0)
        # One more: a minute that starts just after a request does not count it.
        bucket.set((per_minute - capacity + 1) / MINUTE, capacity, now)
    return bucket


def _tokens_bucket(per_minute: int | None, now: float) -> TokenBucket:
    bucket = TokenBucket()
    if per_minute is not None:
        capacity = max(per_minute / MINUTE, min(MIN_REQUEST_TOKENS, max(1.0, per_minute / 10)))
        capacity = min(capacity, per_minute / 2)
        bucket.set((per_minute - capacity) / MINUTE, capacity, now)
    return bucket
