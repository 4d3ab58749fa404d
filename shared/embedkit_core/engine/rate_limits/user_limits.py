"""The limits a minute that callers set for themselves, over all who use a model. Pure."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from embedkit_core.engine.rate_limits.provider_limits import MINUTE, TokenBucket

MIN_REQUEST_TOKENS = 2_000  # of a request that is cut down for the pace
MAX_IDLE_PAIRS = 64  # pairs of limits whose callers are idle; more are not worth their memory


class RateSettings(NamedTuple):
    """A caller's own limits a minute; None for none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class BucketPair(NamedTuple):
    """A bucket for each of a caller's limits."""

    requests: TokenBucket
    tokens: TokenBucket


class UserLimits:
    """A pair of buckets for each pair of limits that callers have.

    Every request takes from all of them, whoever it is for; only those of callers with work hold anybody back.
    """

    def __init__(self) -> None:
        self._callers: Counter[RateSettings] = Counter()
        self._pairs: dict[RateSettings, BucketPair] = {}

    def enter(self, rates: RateSettings, now: float) -> None:
        """Note a caller with work."""
        self._callers[rates] += 1
        if rates != RateSettings() and rates not in self._pairs:
            if len(self._pairs) >= MAX_IDLE_PAIRS:
                self._pairs = {key: pair for key, pair in self._pairs.items() if self._callers[key] > 0}
            self._pairs[rates] = BucketPair(
                _bucket(rates.requests_per_minute, 1.0, now), _bucket(rates.tokens_per_minute, MIN_REQUEST_TOKENS, now)
            )

    def leave(self, rates: RateSettings) -> None:
        """Note that a caller has no work any more."""
        self._callers[rates] -= 1

    @property
    def callers(self) -> int:
        """How many callers have work."""
        return sum(self._callers.values())

    def binding(self) -> list[BucketPair]:
        """Give the buckets that hold requests back now."""
        return [pair for rates, pair in self._pairs.items() if self._callers[rates] > 0]

    def wait(self, tokens: float, now: float) -> float:
        """Give the seconds until a request of so many tokens may go out."""
        waits = [max(pair.requests.wait(1, now), pair.tokens.wait(tokens, now)) for pair in self.binding()]
        return max(waits, default=0.0)

    def take(self, requests: int, tokens: float, now: float) -> None:
        """Take for a request; again for what it was billed beyond what was taken."""
        for rates, pair in self._pairs.items():
            for bucket, amount in ((pair.requests, requests), (pair.tokens, tokens)):
                if self._callers[rates] <= 0:  # others' requests: what they took is past after a minute
                    amount = min(amount, max(0.0, bucket.level(now) + MINUTE * (bucket.rate or 0.0)))
                bucket.take(amount, now)


def _bucket(a_minute: int | None, least: float, now: float) -> TokenBucket:
    """Make a bucket of which no minute sees more than its limit: it holds about a second's worth of it."""
    bucket = TokenBucket()
    if a_minute is not None:
        held = max(a_minute / MINUTE, min(least, max(1.0, a_minute / 10)))
        held = held if least == 1 else min(held, a_minute / 2)
        one = 1 if least == 1 else 0  # a minute that begins just after one request has room for one more
        bucket.set((a_minute - held + one) / MINUTE, held, now)
    return bucket
