"""When requests of one model may be sent: user limits, provider limits, pauses and overload. No I/O.

All callers of an account share the controller of a model, so that one refusal slows down every caller and all of them
respect a `Retry-After`. Rate limiter packages (aiolimiter, limits) are bound to an event loop or a wall clock and
cannot be updated from response headers; the controller runs on the times that are passed in.

A request is delayed by the longest of these:

- the callers' own limits (`UserLimits`);
- the provider's limits on requests and on tokens (`ProviderLimit`, one each), from headers or inferred from HTTP 429;
- a pause: the provider sent `Retry-After`, or a refusal of a request that was alone;
- probing: after a refusal with an unknown rate, one small request at a time until one is accepted;
- the ramp: without limits from headers, the requests in flight double from the first reply on, so that few requests
  are in flight at the first refusal;
- overload: after HTTP 503, 529 or a timeout, fewer requests in flight, which recover with each reply.

HTTP 429 has two meanings: a rate limit, or a limit on the requests in flight, as of servers with a short queue. If the
response does not tell, the requests in flight do: a limit on them is assumed as long as requests are refused only when
more are in flight than were accepted before.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from embedkit_core.common.errors import ProviderError, RateLimitError, TimedOutError
from embedkit_core.common.types import RateLimitStatus
from embedkit_core.engine.batching import DEFAULT_SECONDS_PER_TOKEN, MAX_TOKENS, MIN_TEXTS
from embedkit_core.engine.rate_limits.provider_limits import CLOCK_RESOLUTION, MINUTE, ProviderLimit
from embedkit_core.engine.rate_limits.user_limits import MAX_REQUEST_SECONDS, MIN_REQUEST_TOKENS, Backlog, UserLimits

INITIAL_IN_FLIGHT, RAMP_DOUBLING_SECONDS = 4, 0.025  # the ramp; a refusal usually arrives within 25 ms
INITIAL_PAUSE, MAX_PAUSE = 0.5, 30.0  # seconds after a refusal without Retry-After; doubled for each consecutive one
SHRINK_STATUSES = (503, 529)  # overload
SHRINK_FACTOR = 0.7  # of the requests in flight, on overload
SIMILAR_IN_FLIGHT = 0.75  # of the requests in flight that were accepted; a refusal with fewer is a rate limit
RECOVERY = 0.25  # additional requests in flight, for each round of replies and each second since the overload
DECAY = 0.98  # weight of all earlier bills at each new one
MIN_CALIBRATION_TOKENS = 200  # fewer are filled up, as if billed as estimated: the bill of a short text says little
MAX_TOKENS_PER_ESTIMATED = 8.0  # a bill beyond this is implausible
MIN_REQUEST_RATE, MIN_TOKEN_RATE = 0.2, 1_000.0  # per second; where the search for a rate starts
REGROWTH = 1.02  # of the minimum request size, for each reply after refusals reduced it
REQUESTS_PER_MINUTE, TOKENS_PER_MINUTE, IN_FLIGHT = "requests/min", "tokens/min", "requests in flight"  # units


class SentRequest(NamedTuple):
    """The record of a request in flight.

    Attributes:
        at: The time it was sent.
        position: How many requests of the model were in flight then, including it.
        size: Its estimated tokens.
        tokens: Its calibrated tokens.
        cumulative_requests: All requests of the model so far, including it.
        cumulative_tokens: All tokens of the model so far, including its own.
    """

    at: float
    position: int
    size: int
    tokens: float
    cumulative_requests: float
    cumulative_tokens: float


class FailureRecord(NamedTuple):
    """The last failure of a request: the error's type, the HTTP status and the time."""

    error: str
    status: int | None
    at: float

    def __str__(self) -> str:
        return self.error if self.status is None else f"{self.error} (HTTP {self.status})"


class KnownLimit(NamedTuple):
    """A limit of the provider, from its headers or inferred from its refusals."""

    unit: str
    value: float
    from_headers: bool

    def __str__(self) -> str:
        source = "from response headers" if self.from_headers else "inferred from HTTP 429"
        name = "Rate limit"
        if self.unit == IN_FLIGHT:
            name, source = "Concurrency limit", "inferred from overload"
        return f"{name} {source}: about {self.value:,.0f} {self.unit}"


class RateController:
    """The rate limits of one model at one account.

    Attributes:
        tokens_per_estimated: Billed tokens for each estimated token.
        in_flight: The requests of the model that are in flight.
        probing: True after a refusal with an unknown rate, until a request is accepted.
        last_failure: The last failure of a request, for snapshots.
        user_limits: The limits that callers set.
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
        self._ramp_start: float | None = None
        self._has_reply = False
        self._max_in_flight = math.inf
        self._shrunk_at = float("-inf")
        self._max_accepted = 0  # the most requests in flight at which one was accepted, since the last rate limit
        # Decaying sums over replies, for the calibration
        self._billed = self._estimated = self._seconds = 0.0
        self._seconds_per_token = DEFAULT_SECONDS_PER_TOKEN

    # Limits

    def tokens(self, size: int) -> int:
        """Return the tokens that a text or request of so many estimated tokens is likely to be billed at."""
        return max(1, round(size * self.tokens_per_estimated))

    def wait(self, size: int, now: float, *, is_query: bool, backlog: Backlog) -> float:
        """Return the seconds until a request of so many estimated tokens may be sent; inf: after the next reply.

        Args:
            size: The estimated tokens.
            now: The current time.
            is_query: True for a request with queries.
            backlog: What waits on the model, including the request; used if callers set limits.
        """
        if self.in_flight and (self.probing or self.in_flight + 1 > self._max_in_flight):
            return math.inf
        ramp_until = -math.inf
        if self._ramp_start is not None:
            doublings = math.log2((self.in_flight + 1) / INITIAL_IN_FLIGHT)
            ramp_until = self._ramp_start + RAMP_DOUBLING_SECONDS * doublings
        tokens = size * self.tokens_per_estimated
        seconds = max(
            ramp_until - now,
            self._paused_until - now,
            self._requests.wait(1, now),
            self._tokens.wait(tokens, now),
            self.user_limits.wait(tokens, now, is_query=is_query, backlog=backlog),
        )
        return seconds if seconds > CLOCK_RESOLUTION else 0.0

    def header_wait(self, size: int, now: float) -> tuple[float, str]:
        """Return the longest wait for a quota in headers, for a request of so many estimated tokens, and the header."""
        amounts = ((self._requests, 1.0, "requests"), (self._tokens, size * self.tokens_per_estimated, "tokens"))
        waits = [(limit.wait(amount, now), unit) for limit, amount, unit in amounts if limit.from_headers]
        seconds, unit = max(waits, default=(0.0, ""))
        return seconds, f"x-ratelimit-remaining-{unit}"

    @property
    def limits_tokens(self) -> bool:
        """True if there is a limit on tokens."""
        return self._tokens.bucket.rate is not None or self.user_limits.strictest.tokens_per_minute is not None

    def max_texts(self, texts: int) -> int:
        """Return how many texts a request may hold: `texts`, or fewer while probing."""
        return min(texts, max(1, MIN_TEXTS >> max(0, self._consecutive_refusals - 1))) if self.probing else texts

    def max_tokens(self, now: float, backlog: Backlog) -> float:
        """Return how many estimated tokens a request should hold at most: fewer if tokens are the limiting resource.

        There is no bound if requests are: then each should hold all it can.
        """
        if self.probing:
            return self._min_request_tokens / self.tokens_per_estimated
        for limit in (self._requests, self._tokens):
            limit.refresh(now)  # or a request would grow after its size was checked
        bounds = [math.inf if self.requests_are_limiting(now, backlog) else float(MAX_TOKENS)]
        requests, tokens = self._requests.bucket, self._tokens.bucket
        if tokens.rate is not None:
            tokens_per_request = tokens.rate / requests.rate if requests.rate else 0.0
            available = max(tokens.rate * MAX_REQUEST_SECONDS, tokens.level(now))
            bounds.append(max(self._min_request_tokens, tokens_per_request, available))
        user_bound = self.user_limits.max_tokens(now, backlog)
        if user_bound is not None:
            bounds.append(user_bound)
        return min(bounds) / self.tokens_per_estimated

    def requests_are_limiting(self, now: float, backlog: Backlog) -> bool:
        """Return True if the provider allows less than two requests now, or the user too few for the backlog."""
        return self._provider_limits_requests(now) or self.user_limits.requests_are_limiting(now, backlog)

    def _provider_limits_requests(self, now: float) -> bool:
        return self._requests.bucket.rate is not None and self._requests.bucket.level(now) < 2

    def optimal_requests(self, size: int, now: float, backlog: Backlog) -> float:
        """Return into how many requests so many estimated tokens should be split if requests are limiting; at least 1.

        n requests of T tokens in total, at a rate of q requests a second and c seconds a token, take about
        n / q + c T / n seconds: least for n = sqrt(c T q). If all texts fit into the requests that are left of the
        user's minute, it is that number: no request waits.
        """
        tokens = size * self.tokens_per_estimated
        rates, numbers = [], []
        if self._provider_limits_requests(now):
            rates.append(self._requests.bucket.rate or 0.0)
        left = self.user_limits.requests_left(now)
        if left is not None and backlog.min_requests <= left:
            numbers.append(left * tokens / max(1.0, tokens, backlog.tokens))
        elif left is not None:
            rates.append(self.user_limits.requests_per_second())
        numbers += [math.sqrt(self._seconds_per_token * tokens * rate) for rate in rates]
        return max(1.0, min(numbers, default=1.0))

    # For estimates and snapshots

    @property
    def has_bills(self) -> bool:
        """True if a reply was billed, so that the calibration is this model's own."""
        return self._billed > 0

    def record_failure(self, error: ProviderError, now: float) -> None:
        """Remember a failure for snapshots."""
        self.last_failure = FailureRecord(type(error).__name__, error.status, now)

    def known_limits(self) -> list[KnownLimit]:
        """Return the provider's limits that are known."""
        limits = ((REQUESTS_PER_MINUTE, self._requests), (TOKENS_PER_MINUTE, self._tokens))
        known = [
            KnownLimit(unit, limit.bucket.rate * MINUTE, limit.from_headers)
            for unit, limit in limits
            if limit.bucket.rate
        ]
        if self._max_in_flight < math.inf:
            known.append(KnownLimit(IN_FLIGHT, self._max_in_flight, from_headers=False))
        return known

    def pause_remaining(self, now: float) -> float:
        """Return the seconds of the current pause that are left; 0 if there is none."""
        return max(0.0, self._paused_until - now)

    @property
    def seconds_per_token(self) -> float:
        """The recent duration of requests, in seconds per billed token."""
        return self._seconds / self._billed if self._billed else DEFAULT_SECONDS_PER_TOKEN

    def seconds_for(self, requests: int, tokens: int) -> float:
        """Return the seconds that the known limits of the provider need for so many requests and tokens."""
        amounts = ((self._requests.bucket, requests), (self._tokens.bucket, tokens))
        waits = [max(0.0, n - bucket.capacity) / bucket.rate for bucket, n in amounts if bucket.rate]
        return max(waits, default=0.0)

    # Events

    def on_sent(self, size: int, now: float, *, more_waits: bool) -> SentRequest:
        """Count a request that is sent; `more_waits` is True if texts of the model wait for another request."""
        tokens = size * self.tokens_per_estimated
        self._requests.saturated &= more_waits
        self._tokens.saturated &= more_waits
        self.in_flight += 1
        self.user_limits.take(tokens, now)
        cumulative_requests, cumulative_tokens = self._requests.take(1, now), self._tokens.take(tokens, now)
        return SentRequest(now, self.in_flight, size, tokens, cumulative_requests, cumulative_tokens)

    def on_returned(self, sent: SentRequest, max_in_flight: int) -> None:
        """Count a request that is no longer in flight; end the ramp if it reached the callers' own bound."""
        if self._ramp_start is not None and sent.at >= self._ramp_start and self.in_flight >= max_in_flight:
            self._ramp_start = None
        self.in_flight -= 1

    def on_unsent(self, sent: SentRequest, now: float) -> None:
        """Restore what a request has taken that was counted as sent, but is not sent."""
        self.in_flight -= 1
        self.user_limits.give_back(sent.tokens, sent.at, now)
        self._requests.give_back(1, now)
        self._tokens.give_back(sent.tokens, now)

    def on_reply(self, sent: SentRequest, billed: int | None, status: RateLimitStatus | None, now: float) -> None:
        """Learn from a reply: its billed tokens, its duration and the rate limits in its headers."""
        if billed:
            billed = min(billed, math.ceil(sent.size * MAX_TOKENS_PER_ESTIMATED))
            self.user_limits.correct(sent.tokens, sent.at, billed, now)
            self._tokens.bucket.take(billed - sent.tokens, now)
            self._calibrate(sent.size, billed)
            self._seconds = DECAY * self._seconds + now - sent.at
            self._seconds_per_token += (1 - DECAY) * ((now - sent.at) / billed - self._seconds_per_token)
        self._update_from_headers(sent, status, now)
        self._max_accepted = max(self._max_accepted, sent.position)
        if sent.at >= self._refused_at:
            self._consecutive_refusals = 0
            self._min_request_tokens = min(MIN_REQUEST_TOKENS, self._min_request_tokens * REGROWTH)
            if self.probing:
                self._tokens.first_success(sent.tokens, now)
                self._requests.first_success(1, now)
            elif not self._has_reply and not self._has_header_limits:
                self._ramp_start = now
            self.probing, self._has_reply = False, True
        if self._max_in_flight < math.inf:  # slowly at first: the last limit was too high a moment ago
            self._max_in_flight += RECOVERY * (1 + now - self._shrunk_at) / self._max_in_flight

    def on_failure(self, sent: SentRequest, error: ProviderError, now: float) -> float:
        """Learn from a transient failure.

        Returns:
            Seconds until any request of the model may be sent; 0 if the others need not wait.
        """
        if error.unsent:
            self.user_limits.give_back(sent.tokens, sent.at, now)
        if not isinstance(error, RateLimitError):
            if error.status in SHRINK_STATUSES or isinstance(error, TimedOutError):
                self._shrink(sent, now)
            return 0.0
        self._update_from_headers(sent, error.rate_limits, now)
        if not self._may_be_overload(sent, error):
            return self._on_rate_limit(sent, error, now)
        self._tokens.put_back(sent.tokens, sent.cumulative_tokens, now)
        self._requests.put_back(1.0, sent.cumulative_requests, now)
        self._ramp_start = None
        self._shrink(sent, now)
        return 0.0

    def _may_be_overload(self, sent: SentRequest, error: RateLimitError) -> bool:
        """Return True if a limit on the requests in flight explains a 429.

        It does not if the provider states a wait or an exhausted quota, or if about as many in flight were accepted
        since the last refusal by a rate limit. If a rate is known already, as many are enough.
        """
        is_late = sent.at < self._refused_at
        if self.probing or is_late or (error.retry_after or 0.0) > 0 or _shows_exhaustion(error.rate_limits, sent):
            return False
        # Responses to refused requests come first, so the earlier ones that are still in flight were accepted.
        self._max_accepted = max(self._max_accepted, min(sent.position, self.in_flight) - 1)
        rate_is_known = self._requests.bucket.rate is not None or self._tokens.bucket.rate is not None
        return sent.position > max(1.0, self._max_accepted * (1.0 if rate_is_known else SIMILAR_IN_FLIGHT))

    def _shrink(self, sent: SentRequest, now: float) -> None:
        """Reduce the requests in flight, once for all that were in flight at the same time."""
        if sent.at >= self._shrunk_at:
            self._shrunk_at = now
            self._max_in_flight = max(1.0, SHRINK_FACTOR * min(self._max_in_flight, self.in_flight))

    def pause(self, until: float) -> None:
        """Send no request of the model before a time."""
        self._paused_until = max(self._paused_until, until)

    @property
    def _has_header_limits(self) -> bool:
        return self._tokens.from_headers or self._requests.from_headers

    def _on_rate_limit(self, sent: SentRequest, error: RateLimitError, now: float) -> float:
        """Learn from a refusal that a rate limit explains. Return the seconds to pause for."""
        limit, amount, cumulative = self._tokens, sent.tokens, sent.cumulative_tokens
        if error.counts_requests:
            limit, amount, cumulative = self._requests, 1.0, sent.cumulative_requests
        if sent.at < self._refused_at:  # in flight at the last refusal, so it is no news
            limit.put_back(amount, cumulative, now)
            return max(0.0, self._paused_until - now)
        self._refused_at, self._max_accepted = now, 0
        rate_is_known = limit.rate_limited(amount, cumulative, sent.at, now)
        self._consecutive_refusals = limit.consecutive_refusals
        if self.probing:  # even a small request was refused
            self._min_request_tokens = max(1.0, self._min_request_tokens / 2)
        self._ramp_start = None
        self.probing = not rate_is_known
        if rate_is_known and self._consecutive_refusals == 1:
            return 0.0  # the bucket delays the retry
        pause = min(MAX_PAUSE, INITIAL_PAUSE * 2.0 ** min(16, self._consecutive_refusals - 1))
        return pause * self._rng.uniform(0.5, 1.0)

    def _update_from_headers(self, sent: SentRequest, status: RateLimitStatus | None, now: float) -> None:
        if status is not None and status.requests is not None:
            self._requests.update_from_headers(status.requests, sent.cumulative_requests, sent.at, now)
        if status is not None and status.tokens is not None:
            self._tokens.update_from_headers(status.tokens, sent.cumulative_tokens, sent.at, now)

    def _calibrate(self, estimated: int, billed: int) -> None:
        self._billed, self._estimated = DECAY * self._billed + billed, DECAY * self._estimated + estimated
        missing = max(0.0, MIN_CALIBRATION_TOKENS - self._estimated)
        ratio = (self._billed + missing) / (self._estimated + missing)
        self.tokens_per_estimated = min(MAX_TOKENS_PER_ESTIMATED, max(1 / MAX_TOKENS_PER_ESTIMATED, ratio))


def _shows_exhaustion(status: RateLimitStatus | None, sent: SentRequest) -> bool:
    """Return True if the headers of a refusal show that a quota has no room for the request."""
    if status is None:
        return False
    amounts = ((status.requests, 1.0), (status.tokens, sent.tokens))
    return any(limit is not None and limit.remaining < amount for limit, amount in amounts)
