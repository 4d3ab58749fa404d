"""How fast requests of one model may go out: the user's limits a minute, the provider's, and its refusals. Pure.

All callers of an account share the pace of a model, so that one refusal slows everybody and one `Retry-After` is kept
by all. Rate limiters of well-kept libraries (aiolimiter, limits) belong to an event loop or a wall clock and cannot be
told what a provider's headers say; the scheduler runs on the time it is given.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from embedkit_core.common.errors import ProviderError, RateLimitError, TimedOutError
from embedkit_core.common.types import RateLimitStatus
from embedkit_core.engine.batching import DEFAULT_SECONDS_PER_TOKEN, MAX_TOKENS, MIN_TEXTS
from embedkit_core.engine.rate_limits.provider_limits import CLOCK_RESOLUTION, MINUTE, ProviderLimit, TokenBucket
from embedkit_core.engine.rate_limits.user_limits import MIN_REQUEST_TOKENS, UserLimits

# At a server that tells no limits: what may be in flight at first, and the seconds in which that doubles. A refusal is
# back sooner, so that few are refused.
INITIAL_IN_FLIGHT, RAMP_DOUBLING_SECONDS = 4, 0.025
INITIAL_PAUSE, MAX_PAUSE = 0.5, 30.0  # seconds after a refusal that says nothing, doubled with each in a row
MAX_REQUEST_SECONDS = 0.15  # seconds of the rate that one request takes at most, where tokens are short
SHRINK_STATUSES = (503, 529)
SHRINK_FACTOR = 0.7  # of the requests in flight, when the server is overloaded
RECOVERY = 0.25  # requests in flight more, for each round of answers and second since then
DECAY = 0.98  # of what was billed so far, with each bill
MAX_TOKENS_PER_ESTIMATED = 8.0  # tokens for one that was estimated
MIN_REQUEST_RATE, MIN_TOKEN_RATE = 0.2, 1_000.0  # a second, with which a rate begins to be looked for
REGROWTH = 1.02  # of the smallest requests, with each answer


class SentRequest(NamedTuple):
    """What is remembered of a request: when it went out, its size as estimated and as calibrated, and its marks."""

    at: float
    size: int
    tokens: float
    request_mark: float
    token_mark: float


class FailureRecord(NamedTuple):
    """The last failure of a request: the error's type, the status and when it was."""

    error: str
    status: int | None
    at: float

    def __str__(self) -> str:
        return self.error if self.status is None else f"{self.error} (HTTP {self.status})"


class KnownLimit(NamedTuple):
    """What a provider bears, by its headers (`told`) or by its refusals."""

    kind: str
    value: float
    from_headers: bool

    def __str__(self) -> str:
        source = "as the provider says" if self.from_headers else "as its refusals taught"
        return f"about {self.value:,.0f} {self.kind}, {source}"


class RateController:
    """The limits of one model at one account, as far as they are known.

    `tokens_per_estimated` is the billed tokens for each estimated one. `probing` says that the server
    refused without a reason to know better: one small request at a time until one is let through.
    """

    def __init__(self, rng: random.Random) -> None:
        self.tokens_per_estimated = 1.0
        self.in_flight = 0
        self.last_failure: FailureRecord | None = None
        self.probing = False
        self.user_limits = UserLimits()
        self._rng = rng
        self._requests, self._tokens = ProviderLimit(MIN_REQUEST_RATE), ProviderLimit(MIN_TOKEN_RATE)
        self._min_request_tokens = float(MIN_REQUEST_TOKENS)
        self._paused_until = float("-inf")
        self._consecutive_refusals = 0
        self._refused_at = float("-inf")
        self._ramp_from: float | None = None
        self._has_reply = False
        self._max_in_flight = math.inf
        self._shrunk_at = float("-inf")
        self._billed = self._estimated = self._took = 0.0
        self._seconds_per_token = DEFAULT_SECONDS_PER_TOKEN

    # What may go out

    def tokens(self, size: int) -> int:
        """Give the tokens that so many estimated ones are likely to be."""
        return max(1, round(size * self.tokens_per_estimated))

    def wait(self, size: int, now: float) -> float:
        """Give the seconds until a request of so many estimated tokens may go out; inf: not before one comes back."""
        if self.in_flight and (self.probing or self.in_flight + 1 > self._max_in_flight):
            return math.inf  # until one comes back
        ramp = -math.inf
        if self._ramp_from is not None:
            ramp = self._ramp_from + RAMP_DOUBLING_SECONDS * math.log2((self.in_flight + 1) / INITIAL_IN_FLIGHT)
        tokens = size * self.tokens_per_estimated
        seconds = max(
            ramp - now,
            self._paused_until - now,
            self._requests.wait(1, now),
            self._tokens.wait(tokens, now),
            self.user_limits.wait(tokens, now),
        )
        return seconds if seconds > CLOCK_RESOLUTION else 0.0

    @property
    def limits_tokens(self) -> bool:
        """Tell whether it matters how many tokens a request has."""
        return any(tokens.rate is not None for _, tokens in self._limits())

    def max_texts(self, texts: int) -> int:
        """Give how many texts a request may hold, of those that it may at other times."""
        return min(texts, max(1, MIN_TEXTS >> max(0, self._consecutive_refusals - 1))) if self.probing else texts

    def max_tokens(self, now: float) -> float:
        """Give how many estimated tokens a request should hold at most: fewer where tokens are short.

        No bound where requests are short: then each should hold all it can.
        """
        if self.probing:
            return self._min_request_tokens / self.tokens_per_estimated
        most = math.inf if self.requests_are_limiting(now) else float(MAX_TOKENS)
        for requests, tokens in self._limits():
            if tokens.rate is not None:
                each = tokens.rate / requests.rate if requests.rate else 0.0
                least = (
                    self._min_request_tokens
                    if tokens is self._tokens.bucket
                    else min(MIN_REQUEST_TOKENS, tokens.capacity)
                )
                most = min(most, max(least, each, tokens.rate * MAX_REQUEST_SECONDS, tokens.level(now)))
        return most / self.tokens_per_estimated

    def requests_are_limiting(self, now: float) -> bool:
        """Tell whether it is the number of requests that is short."""
        return any(requests.rate is not None and requests.level(now) < 2 for requests, _ in self._limits())

    def _limits(self) -> list[tuple[TokenBucket, TokenBucket]]:
        return [(self._requests.bucket, self._tokens.bucket), *self.user_limits.binding()]

    def optimal_requests(self, size: int) -> float:
        """Give how many requests a job of so many estimated tokens should be, where requests are short; 1 at least.

        n requests of T tokens in all, q of which may go out in a second, are answered after about n / q + c T / n
        seconds, if a token takes c: least for n = sqrt(c T q).
        """
        rates = [requests.rate for requests, _ in self._limits() if requests.rate is not None]
        return max(1.0, math.sqrt(self._seconds_per_token * size * self.tokens_per_estimated * min(rates, default=1.0)))

    # What is known, for who wants to know what a job would take

    @property
    def has_bills(self) -> bool:
        """Tell whether anything was billed yet, so that what is known is of this model."""
        return self._billed > 0

    def record_failure(self, error: ProviderError, now: float) -> None:
        """Remember a failure, for who asks how things stand."""
        self.last_failure = FailureRecord(type(error).__name__, error.status, now)

    def known_limits(self) -> list[KnownLimit]:
        """Give the limits a minute that the provider told or let be learned, and how many requests it bears at once."""
        flows = (("requests a minute", self._requests), ("tokens a minute", self._tokens))
        known = [
            KnownLimit(kind, flow.bucket.rate * MINUTE, flow.from_headers) for kind, flow in flows if flow.bucket.rate
        ]
        if self._max_in_flight < math.inf:
            known.append(KnownLimit("requests in flight", self._max_in_flight, from_headers=False))
        return known

    def pause_remaining(self, now: float) -> float:
        """Give the seconds until anything may go out, because the provider asked to wait."""
        return max(0.0, self._paused_until - now)

    @property
    def seconds_per_token(self) -> float:
        """The seconds that a request took for each token of it, of late."""
        return self._took / self._billed if self._billed else DEFAULT_SECONDS_PER_TOKEN

    def seconds_for(self, requests: int, tokens: int) -> float:
        """Give the seconds that the provider's limits, as far as they are known, need for so much."""
        asked = ((self._requests.bucket, requests), (self._tokens.bucket, tokens))
        waits = [max(0.0, n - bucket.capacity) / bucket.rate for bucket, n in asked if bucket.rate]
        return max(waits, default=0.0)

    # What comes in

    def on_sent(self, size: int, now: float, *, more_waits: bool) -> SentRequest:
        """Note a request that goes out, and whether more would have gone out if there were no limit."""
        tokens = size * self.tokens_per_estimated
        self._requests.busy &= more_waits
        self._tokens.busy &= more_waits
        self.in_flight += 1
        self.user_limits.take(1, tokens, now)
        return SentRequest(now, size, tokens, self._requests.take(1, now), self._tokens.take(tokens, now))

    def on_returned(self, sent: SentRequest, bound: int) -> None:
        """Note that a request has come back; with as many in flight as callers allow, the ramp is over."""
        if self._ramp_from is not None and sent.at >= self._ramp_from and self.in_flight >= bound:
            self._ramp_from = None
        self.in_flight -= 1

    def on_reply(self, sent: SentRequest, billed: int | None, headroom: RateLimitStatus | None, now: float) -> None:
        """Learn from an answer: what was billed, and what the provider says is left."""
        if billed:
            billed = min(billed, math.ceil(sent.size * MAX_TOKENS_PER_ESTIMATED))  # more is no bill to believe
            self.user_limits.take(0, billed - sent.tokens, now)
            self._tokens.bucket.take(billed - sent.tokens, now)
            self._calibrate(sent.size, billed)
            self._took = DECAY * self._took + now - sent.at
            self._seconds_per_token += (1 - DECAY) * ((now - sent.at) / billed - self._seconds_per_token)
        self._update_from_headers(sent, headroom, now)
        if sent.at >= self._refused_at:
            self._consecutive_refusals = 0
            self._min_request_tokens = min(MIN_REQUEST_TOKENS, self._min_request_tokens * REGROWTH)
            if self.probing:
                self._tokens.first_success(sent.tokens, now)
                self._requests.first_success(1, now)
            elif not self._has_reply and not self._limits_from_headers:
                self._ramp_from = now
            self.probing, self._has_reply = False, True
        if self._max_in_flight < math.inf:  # slowly at first: it was too much a moment ago
            self._max_in_flight += RECOVERY * (1 + now - self._shrunk_at) / self._max_in_flight

    def on_failure(self, sent: SentRequest, error: ProviderError, now: float) -> float | None:
        """Learn from a failure that may pass, and give the seconds to wait, where that is a matter of the pace."""
        if isinstance(error, RateLimitError):
            return self._on_rate_limit(sent, error, now)
        if (error.status in SHRINK_STATUSES or isinstance(error, TimedOutError)) and sent.at >= self._shrunk_at:
            self._shrunk_at = now
            self._max_in_flight = max(1.0, SHRINK_FACTOR * min(self._max_in_flight, self.in_flight))
        return None

    def pause(self, until: float) -> None:
        """Send nothing before a time: a server that asks to wait asks all."""
        self._paused_until = max(self._paused_until, until)

    @property
    def _limits_from_headers(self) -> bool:
        return self._tokens.from_headers or self._requests.from_headers

    def _on_rate_limit(self, sent: SentRequest, error: RateLimitError, now: float) -> float | None:
        self._update_from_headers(sent, error.rate_limits, now)
        flow, amount, mark = self._tokens, sent.tokens, sent.token_mark
        if error.counts_requests:
            flow, amount, mark = self._requests, 1.0, sent.request_mark
        if sent.at < self._refused_at:  # it was in the air when the last one was refused: nothing new
            flow.late_rate_limit(amount, mark, now)
            return max(0.0, self._paused_until - now)
        self._refused_at = now
        known = flow.rate_limited(amount, mark, sent.at, now)
        self._consecutive_refusals = flow.consecutive
        if self.probing:  # so small a request was refused
            self._min_request_tokens = max(1.0, self._min_request_tokens / 2)
        self._ramp_from = None
        self.probing = not known
        if known and self._consecutive_refusals == 1:
            return 0.0  # the bucket knows when
        return min(MAX_PAUSE, INITIAL_PAUSE * 2.0 ** min(16, self._consecutive_refusals - 1)) * self._rng.uniform(
            0.5, 1.0
        )

    def _update_from_headers(self, sent: SentRequest, headroom: RateLimitStatus | None, now: float) -> None:
        if headroom is not None and headroom.requests is not None:
            self._requests.update_from_headers(headroom.requests, sent.request_mark, sent.at, now)
        if headroom is not None and headroom.tokens is not None:
            self._tokens.update_from_headers(headroom.tokens, sent.token_mark, sent.at, now)

    def _calibrate(self, estimated: int, billed: int) -> None:
        self._billed, self._estimated = DECAY * self._billed + billed, DECAY * self._estimated + estimated
        self.tokens_per_estimated = min(
            MAX_TOKENS_PER_ESTIMATED, max(1 / MAX_TOKENS_PER_ESTIMATED, self._billed / self._estimated)
        )
