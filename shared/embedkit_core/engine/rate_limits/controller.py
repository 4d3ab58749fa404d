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
from embedkit_core.common.types import Headroom
from embedkit_core.engine.batching import CAP_TOKENS, FLOOR_TEXTS, USUAL_SECONDS
from embedkit_core.engine.rate_limits.provider_limits import INSTANT, MINUTE, Bucket, Flow
from embedkit_core.engine.rate_limits.user_limits import FEWEST_TOKENS, OwnLimits

# At a server that tells no limits: what may be in flight at first, and the seconds in which that doubles. A refusal is
# back sooner, so that few are refused.
FIRST_IN_FLIGHT, DOUBLING = 4, 0.025
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds after a refusal that says nothing, doubled with each in a row
SLICE = 0.15  # seconds of the rate that one request takes at most, where tokens are short
OVERLOADED = (503, 529)
SHRINK = 0.7  # of the requests in flight, when the server is overloaded
RECOVERY = 0.25  # requests in flight more, for each round of answers and second since then
MEMORY = 0.98  # of what was billed so far, with each bill
MOST_EACH = 8.0  # tokens for one that was estimated
SLOWEST_REQUESTS, SLOWEST_TOKENS = 0.2, 1_000.0  # a second, with which a rate begins to be looked for
REGROWTH = 1.02  # of the smallest requests, with each answer


class Sent(NamedTuple):
    """What is remembered of a request: when it went out, its size as estimated and as calibrated, and its marks."""

    at: float
    size: int
    tokens: float
    request_mark: float
    token_mark: float


class Failure(NamedTuple):
    """The last failure of a request: the error's type, the status and when it was."""

    error: str
    status: int | None
    at: float

    def __str__(self) -> str:
        return self.error if self.status is None else f"{self.error} (HTTP {self.status})"


class KnownLimit(NamedTuple):
    """What a provider bears, by its headers (`told`) or by its refusals."""

    kind: str
    most: float
    told: bool

    def __str__(self) -> str:
        return (
            f"about {self.most:,.0f} {self.kind}, {'as the provider says' if self.told else 'as its refusals taught'}"
        )


class Pace:
    """The limits of one model at one account, as far as they are known.

    `tokens_each` is how many tokens the provider counts for one that was estimated. `probing` says that the server
    refused without a reason to know better: one small request at a time until one is let through.
    """

    def __init__(self, rng: random.Random) -> None:
        self.tokens_each = 1.0
        self.in_flight = 0
        self.last_failure: Failure | None = None
        self.probing = False
        self.own = OwnLimits()
        self._rng = rng
        self._requests, self._tokens = Flow(SLOWEST_REQUESTS), Flow(SLOWEST_TOKENS)
        self._fewest = float(FEWEST_TOKENS)
        self._paused_until = float("-inf")
        self._refusals_in_a_row = 0
        self._refused_at = float("-inf")
        self._ramp_from: float | None = None
        self._met = False
        self._window = math.inf
        self._shrunk_at = float("-inf")
        self._billed = self._estimated = self._took = 0.0
        self._seconds_each = USUAL_SECONDS

    # What may go out

    def tokens(self, size: int) -> int:
        """Give the tokens that so many estimated ones are likely to be."""
        return max(1, round(size * self.tokens_each))

    def wait(self, size: int, now: float) -> float:
        """Give the seconds until a request of so many estimated tokens may go out; inf: not before one comes back."""
        if self.in_flight and (self.probing or self.in_flight + 1 > self._window):
            return math.inf  # until one comes back
        ramp = -math.inf
        if self._ramp_from is not None:
            ramp = self._ramp_from + DOUBLING * math.log2((self.in_flight + 1) / FIRST_IN_FLIGHT)
        tokens = size * self.tokens_each
        seconds = max(
            ramp - now,
            self._paused_until - now,
            self._requests.wait(1, now),
            self._tokens.wait(tokens, now),
            self.own.wait(tokens, now),
        )
        return seconds if seconds > INSTANT else 0.0

    @property
    def counts_tokens(self) -> bool:
        """Tell whether it matters how many tokens a request has."""
        return any(tokens.rate is not None for _, tokens in self._limits())

    def most_texts(self, texts: int) -> int:
        """Give how many texts a request may hold, of those that it may at other times."""
        return min(texts, max(1, FLOOR_TEXTS >> max(0, self._refusals_in_a_row - 1))) if self.probing else texts

    def most_tokens(self, now: float) -> float:
        """Give how many estimated tokens a request should hold at most: fewer where tokens are short.

        No bound where requests are short: then each should hold all it can.
        """
        if self.probing:
            return self._fewest / self.tokens_each
        most = math.inf if self.requests_bind(now) else float(CAP_TOKENS)
        for requests, tokens in self._limits():
            if tokens.rate is not None:
                each = tokens.rate / requests.rate if requests.rate else 0.0
                least = self._fewest if tokens is self._tokens.bucket else min(FEWEST_TOKENS, tokens.capacity)
                most = min(most, max(least, each, tokens.rate * SLICE, tokens.level(now)))
        return most / self.tokens_each

    def requests_bind(self, now: float) -> bool:
        """Tell whether it is the number of requests that is short."""
        return any(requests.rate is not None and requests.level(now) < 2 for requests, _ in self._limits())

    def _limits(self) -> list[tuple[Bucket, Bucket]]:
        return [(self._requests.bucket, self._tokens.bucket), *self.own.binding()]

    def requests_for(self, size: int) -> float:
        """Give how many requests a job of so many estimated tokens should be, where requests are short; 1 at least.

        n requests of T tokens in all, q of which may go out in a second, are answered after about n / q + c T / n
        seconds, if a token takes c: least for n = sqrt(c T q).
        """
        rates = [requests.rate for requests, _ in self._limits() if requests.rate is not None]
        return max(1.0, math.sqrt(self._seconds_each * size * self.tokens_each * min(rates, default=1.0)))

    # What is known, for who wants to know what a job would take

    @property
    def has_bills(self) -> bool:
        """Tell whether anything was billed yet, so that what is known is of this model."""
        return self._billed > 0

    def note(self, error: ProviderError, now: float) -> None:
        """Remember a failure, for who asks how things stand."""
        self.last_failure = Failure(type(error).__name__, error.status, now)

    def limits_known(self) -> list[KnownLimit]:
        """Give the limits a minute that the provider told or let be learned, and how many requests it bears at once."""
        flows = (("requests a minute", self._requests), ("tokens a minute", self._tokens))
        known = [KnownLimit(kind, flow.bucket.rate * MINUTE, flow.told) for kind, flow in flows if flow.bucket.rate]
        if self._window < math.inf:
            known.append(KnownLimit("requests in flight", self._window, told=False))
        return known

    def paused_for(self, now: float) -> float:
        """Give the seconds until anything may go out, because the provider asked to wait."""
        return max(0.0, self._paused_until - now)

    @property
    def seconds_each(self) -> float:
        """The seconds that a request took for each token of it, of late."""
        return self._took / self._billed if self._billed else USUAL_SECONDS

    def seconds_for(self, requests: int, tokens: int) -> float:
        """Give the seconds that the provider's limits, as far as they are known, need for so much."""
        asked = ((self._requests.bucket, requests), (self._tokens.bucket, tokens))
        waits = [max(0.0, n - bucket.capacity) / bucket.rate for bucket, n in asked if bucket.rate]
        return max(waits, default=0.0)

    # What comes in

    def sent(self, size: int, now: float, *, more_waits: bool) -> Sent:
        """Note a request that goes out, and whether more would have gone out if there were no limit."""
        tokens = size * self.tokens_each
        self._requests.busy &= more_waits
        self._tokens.busy &= more_waits
        self.in_flight += 1
        self.own.take(1, tokens, now)
        return Sent(now, size, tokens, self._requests.take(1, now), self._tokens.take(tokens, now))

    def landed(self, sent: Sent, bound: int) -> None:
        """Note that a request has come back; with as many in flight as callers allow, the ramp is over."""
        if self._ramp_from is not None and sent.at >= self._ramp_from and self.in_flight >= bound:
            self._ramp_from = None
        self.in_flight -= 1

    def answered(self, sent: Sent, billed: int | None, headroom: Headroom | None, now: float) -> None:
        """Learn from an answer: what was billed, and what the provider says is left."""
        if billed:
            billed = min(billed, math.ceil(sent.size * MOST_EACH))  # more is no bill to believe
            self.own.take(0, billed - sent.tokens, now)
            self._tokens.bucket.take(billed - sent.tokens, now)
            self._calibrate(sent.size, billed)
            self._took = MEMORY * self._took + now - sent.at
            self._seconds_each += (1 - MEMORY) * ((now - sent.at) / billed - self._seconds_each)
        self._hear(sent, headroom, now)
        if sent.at >= self._refused_at:
            self._refusals_in_a_row = 0
            self._fewest = min(FEWEST_TOKENS, self._fewest * REGROWTH)
            if self.probing:
                self._tokens.passed(sent.tokens, now)
                self._requests.passed(1, now)
            elif not self._met and not self._told:
                self._ramp_from = now
            self.probing, self._met = False, True
        if self._window < math.inf:  # slowly at first: it was too much a moment ago
            self._window += RECOVERY * (1 + now - self._shrunk_at) / self._window

    def failed(self, sent: Sent, error: ProviderError, now: float) -> float | None:
        """Learn from a failure that may pass, and give the seconds to wait, where that is a matter of the pace."""
        if isinstance(error, RateLimitError):
            return self._refused(sent, error, now)
        if (error.status in OVERLOADED or isinstance(error, TimedOutError)) and sent.at >= self._shrunk_at:
            self._shrunk_at = now
            self._window = max(1.0, SHRINK * min(self._window, self.in_flight))
        return None

    def pause(self, until: float) -> None:
        """Send nothing before a time: a server that asks to wait asks all."""
        self._paused_until = max(self._paused_until, until)

    @property
    def _told(self) -> bool:
        return self._tokens.told or self._requests.told

    def _refused(self, sent: Sent, error: RateLimitError, now: float) -> float | None:
        self._hear(sent, error.headroom, now)
        flow, amount, mark = self._tokens, sent.tokens, sent.token_mark
        if error.counts_requests:
            flow, amount, mark = self._requests, 1.0, sent.request_mark
        if sent.at < self._refused_at:  # it was in the air when the last one was refused: nothing new
            flow.refused_too(amount, mark, now)
            return max(0.0, self._paused_until - now)
        self._refused_at = now
        known = flow.refused(amount, mark, sent.at, now)
        self._refusals_in_a_row = flow.in_a_row
        if self.probing:  # so small a request was refused
            self._fewest = max(1.0, self._fewest / 2)
        self._ramp_from = None
        self.probing = not known
        if known and self._refusals_in_a_row == 1:
            return 0.0  # the bucket knows when
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(16, self._refusals_in_a_row - 1)) * self._rng.uniform(
            0.5, 1.0
        )

    def _hear(self, sent: Sent, headroom: Headroom | None, now: float) -> None:
        if headroom is not None and headroom.requests is not None:
            self._requests.hear(headroom.requests, sent.request_mark, sent.at, now)
        if headroom is not None and headroom.tokens is not None:
            self._tokens.hear(headroom.tokens, sent.token_mark, sent.at, now)

    def _calibrate(self, estimated: int, billed: int) -> None:
        self._billed, self._estimated = MEMORY * self._billed + billed, MEMORY * self._estimated + estimated
        self.tokens_each = min(MOST_EACH, max(1 / MOST_EACH, self._billed / self._estimated))
