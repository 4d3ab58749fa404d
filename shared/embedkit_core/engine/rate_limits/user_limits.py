"""User-configured requests and tokens per minute, enforced across all callers of a model. No I/O."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from embedkit_core.common.types import NO_LIMITS, RateSettings
from embedkit_core.coordination.sliding_window import MINUTE, Demand, MinuteUsage, bulk_limit

MIN_REQUEST_TOKENS = 2_000  # requests are not made smaller than this to fit a token limit
MAX_REQUEST_SECONDS = 0.15  # a request takes at most these seconds of a token rate, unless more is available
MIN_REQUESTS_PER_MINUTE = 10  # of a paced job: the smaller the limit on tokens, the smaller the requests


class Backlog(NamedTuple):
    """What waits to be sent on a model.

    Attributes:
        requests: The requests, if they have the usual size.
        min_requests: The requests, if they are as large as the model accepts.
        tokens: The tokens, estimated and calibrated.
    """

    requests: int = 0
    min_requests: int = 0
    tokens: float = 0.0

    def plus(self, other: Backlog) -> Backlog:
        """Return the sum of two."""
        return Backlog(
            self.requests + other.requests, self.min_requests + other.min_requests, self.tokens + other.tokens
        )


class UserLimits:
    """The requests and tokens of a model in the last minute, and the limits of the callers with pending work.

    Every request is recorded, also while no caller has a limit: a caller that comes later gets its limit in every
    minute. The strictest limits apply to all.

    Attributes:
        strictest: The lowest limits among the callers with pending work.
        last: The same, or those of the last caller if none has pending work.
        share: The number of processes that the limits are divided by.
    """

    def __init__(self) -> None:
        self.strictest = self.last = NO_LIMITS
        self.share = 1
        self._others_until = -math.inf
        self._callers: Counter[RateSettings] = Counter()
        self._usage = MinuteUsage()

    def enter(self, rates: RateSettings) -> None:
        """Add a caller with pending work."""
        self._callers[rates] += 1
        self._find_strictest()

    def leave(self, rates: RateSettings) -> None:
        """Remove a caller that has no pending work any more."""
        self._callers[rates] -= 1
        if not self._callers[rates]:
            del self._callers[rates]
            self._find_strictest()

    def _find_strictest(self) -> None:
        requests = [one.requests_per_minute for one in self._callers if one.requests_per_minute is not None]
        tokens = [one.tokens_per_minute for one in self._callers if one.tokens_per_minute is not None]
        self.strictest = RateSettings(min(requests, default=None), min(tokens, default=None))
        if self._callers:
            self.last = self.strictest

    @property
    def limits(self) -> RateSettings:
        """The limits of this process: its share of the strictest ones, at least 1 each."""
        requests, tokens = self.strictest
        if self.share == 1:
            return self.strictest
        return RateSettings(
            None if requests is None else max(1, requests // self.share),
            None if tokens is None else max(1, tokens // self.share),
        )

    def wait(self, tokens: float, now: float, *, is_query: bool, backlog: Backlog) -> float:
        """Return the seconds until a request of so many tokens may be sent; `backlog` includes it."""
        demand = Demand(backlog.min_requests, backlog.tokens)
        return self._usage.wait(tokens, self.limits, now, is_query=is_query, demand=demand)

    def take(self, tokens: float, now: float) -> None:
        """Record a request that is sent."""
        self._usage.take(tokens, now, now)

    def correct(self, tokens: float, sent_at: float, billed: float, now: float) -> None:
        """Replace the tokens of a request by those that were billed."""
        self._usage.correct(tokens, sent_at, billed, sent_at, now)

    def give_back(self, tokens: float, sent_at: float, now: float) -> None:
        """Forget a request that did not reach the provider."""
        self._usage.give_back(tokens, sent_at, now)

    # Sizes of requests

    def on_shared_wait(self, now: float) -> None:
        """Accept that a request waits for a limit because of other processes: for a minute, size requests by that."""
        self._others_until = now + MINUTE

    def requests_are_limiting(self, now: float, backlog: Backlog) -> bool:
        """Return True if requests of the usual size are too many for what is left of the minute."""
        limit = self.limits.requests_per_minute
        if limit is None:
            return False
        return now < self._others_until or self._usage.requests.is_paced(limit, now, demand=backlog.requests)

    def requests_left(self, now: float) -> float | None:
        """Return the requests that are left of the minute and not kept for queries, None if they are not limited."""
        limit = self.limits.requests_per_minute
        if limit is None:
            return None
        return 0.0 if now < self._others_until else max(0.0, bulk_limit(limit) - self._usage.requests.used(now))

    def requests_per_second(self) -> float:
        """Return the rate of a paced job; inf if requests are not limited."""
        limit = self.limits.requests_per_minute
        return math.inf if limit is None else bulk_limit(limit) / MINUTE

    def max_tokens(self, now: float, backlog: Backlog) -> float | None:
        """Return how many tokens a request should hold at most, None if tokens are not limiting.

        Small requests are paced well. If less than two of them are left of the minute, one takes it all.
        """
        per_minute = self.limits
        limit = per_minute.tokens_per_minute
        if limit is None:
            return None
        tokens = paced_request_tokens(per_minute.requests_per_minute, limit)
        if now < self._others_until:
            return tokens
        if not self._usage.tokens.is_paced(limit, now, demand=backlog.tokens):
            return None
        left = bulk_limit(limit) - self._usage.tokens.used(now)
        return left if tokens <= left < 2 * tokens else tokens


def paced_request_tokens(requests_per_minute: int | None, tokens_per_minute: int) -> float:
    """Return the tokens of a request of a job that needs more than a minute; more if requests are limited too."""
    usable = bulk_limit(tokens_per_minute)
    per_request = usable / bulk_limit(requests_per_minute) if requests_per_minute is not None else 0.0
    smallest = min(MIN_REQUEST_TOKENS, usable / MIN_REQUESTS_PER_MINUTE)
    return max(smallest, per_request, usable / MINUTE * MAX_REQUEST_SECONDS)
