"""Token bucket, and one rate limit of a provider: read from its headers or inferred from HTTP 429. No I/O.

A bucket fills at a rate up to its capacity, and each request takes from it. A `ProviderLimit` has one bucket, for
requests or for tokens, and is in one of four states:

- unknown: `bucket.rate` is None, nothing is limited. The initial state.
- headers: `from_headers` is True. The bucket is a copy of the provider's, less the requests sent since.
- searching: a rate that doubles every `SEARCH_DOUBLING_SECONDS`.
- learned: a rate measured between two refusals. It follows CUBIC's curve: back to the measured rate, a pause there,
  then beyond.

Events that move it:

- `update_from_headers`: any state to headers, unless headers are ignored for now.
- `first_success`, the first reply after a refusal: unknown to searching.
- `rate_limited`, a refusal: to learned if the rate could be measured. Between two refusals the bucket was empty twice,
  so it filled by the amount accepted in between. If nothing was accepted, a known rate is halved. In state
  headers the bucket is emptied; more than `MAX_CONTRADICTIONS` refusals a minute prove the headers wrong: they are
  ignored for `HEADER_BLACKOUT_SECONDS`, and the state is unknown or learned.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from embedkit_core.common.types import LimitStatus

MINUTE, DAY = 60.0, 86_400.0
CLOCK_RESOLUTION = 1e-6  # seconds; shorter waits count as none

# Headers
MIN_RESET_SECONDS = 0.1  # a shorter reset is too coarse to compute a rate from
MIN_USED_FRACTION = 0.01  # of a limit; with less in use, the reset is too coarse to compute a rate from
WINDOW_FILL_SECONDS = 1e9  # a fixed window is not refilled before its end: practically no rate
# Seconds of the rate that are not used: requests arrive a little earlier or later than they are sent.
RESERVE_SECONDS = 0.02
MAX_CONTRADICTIONS = 3  # refusals a minute up to which headers are trusted
HEADER_BLACKOUT_SECONDS = 300.0  # during which headers are ignored after that
MAX_PUT_BACK = 64  # refused requests that are remembered until newer headers include them
MAX_STATED_WAIT = 120.0  # seconds; after these, one request tests whether a longer wait is necessary

# Search and growth
SEARCH_DOUBLING_SECONDS = 0.3
SEARCH_CAPACITY_SECONDS = 0.2  # the capacity of the bucket during a search, in seconds of its rate
CAPACITY_SECONDS = 5.0  # the same for a learned rate; the provider does not state it
MARGIN_KNOWN, MARGIN_GUESSED = 0.05, 0.4  # start below a learned rate by this fraction, depending on its precision
MIN_GROWTH_SECONDS, MAX_GROWTH_SECONDS = 1.0, 10.0  # until a learned rate is exceeded; twice its measurement's time
MIN_REQUESTS_PER_PERIOD = 25  # a slow rate grows later than MAX_GROWTH_SECONDS, so that this many requests are sent
MARGIN_AFTER_SEARCH, GROWTH_SECONDS_AFTER_SEARCH = 0.2, 1.5


class TokenBucket:
    """A token bucket; its level is negative while a request was sent in advance.

    Attributes:
        rate: Amount per second; None if there is no known limit.
        capacity: The largest amount the bucket holds.
    """

    def __init__(self) -> None:
        self.rate: float | None = None
        self.capacity = 0.0
        self._level = 0.0
        self._at = 0.0

    def level(self, now: float) -> float:
        """Return the amount that is available now; negative if more was taken than was available."""
        return min(self.capacity, self._level + (self.rate or 0.0) * max(0.0, now - self._at))

    def set(self, rate: float, capacity: float, now: float, level: float | None = None) -> None:
        """Change the rate and capacity. The level stays as it is, unless `level` is given."""
        if level is None and self.rate is not None:
            current = self.level(now)
            level = capacity if current >= self.capacity else current  # a full bucket stays full
        self.rate, self.capacity, self._at = rate, capacity, now
        self._level = capacity if level is None else min(level, capacity)

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` is available. More than the capacity is available when it is full."""
        if self.rate is None:
            return 0.0
        missing = min(amount, self.capacity) - self.level(now)
        return max(0.0, missing / self.rate) if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Subtract an amount from the level; a negative one is put back."""
        self._level, self._at = self.level(now) - amount, now

    def empty(self, now: float) -> None:
        """Set a positive level to zero; keep a negative one."""
        self.take(max(0.0, self.level(now)), now)

    def fill(self, now: float) -> None:
        """Set the level to the capacity."""
        self._level, self._at = self.capacity, now


class _Refusal(NamedTuple):
    """The last refused request: when it was sent, and the cumulative amount that includes it."""

    sent_at: float
    cumulative: float


class ProviderLimit:
    """One rate limit of a provider, on requests or on tokens; the module's docstring describes its states.

    Methods that are about one request get its `cumulative` amount: the amount of all requests so far, including it, as
    returned by `take`.

    Attributes:
        bucket: The bucket that requests take from.
        from_headers: True in state headers.
        saturated: True if there was always more to send since the last refusal. Only then the accepted amount
            measures the provider's rate.
        consecutive_refusals: The refusals in a row, without an accepted request in between.
    """

    def __init__(self, min_rate: float) -> None:
        self.bucket = TokenBucket()
        self.from_headers = False
        self.saturated = True
        self.consecutive_refusals = 0
        self._min_rate = min_rate
        self._cumulative = 0.0  # of all requests, also of the refused ones
        self._last_refusal: _Refusal | None = None
        self._late_refused = 0.0  # the amount that was sent after the last refused request and refused as well
        # Headers
        self._last_status: LimitStatus | None = None
        self._header_rate: float | None = None
        self._headers_sent_at = self._ignore_headers_until = float("-inf")
        self._headers_at_reply = False  # the headers describe the bucket when the reply was made, not at the request
        self._has_fixed_windows = False
        self._window_end = math.inf
        self._last_sent = float("-inf")
        self._put_back: deque[tuple[float, float]] = deque(maxlen=MAX_PUT_BACK)  # (cumulative, amount)
        self._contradictions: list[float] = []
        # The growth curve: the rate at its plateau, the margin below at its start, the seconds between, and its start
        self._searching = False
        self._plateau, self._margin, self._period, self._since = 0.0, MARGIN_KNOWN, MAX_GROWTH_SECONDS, 0.0

    def wait(self, amount: float, now: float) -> float:
        """Return the seconds until `amount` is available, or until the rate should be looked at again."""
        self.refresh(now)
        seconds = self.bucket.wait(amount, now)
        if self.from_headers:
            return max(0.0, min(seconds, self._window_end - now, self._last_sent + MAX_STATED_WAIT - now))
        return min(seconds, SEARCH_DOUBLING_SECONDS)  # a rate that is searched or learned grows meanwhile

    def refresh(self, now: float) -> None:
        """Set the rate that is due now, and fill the bucket if a fixed window has ended."""
        self.ramp_up(now)
        if self._has_fixed_windows and now >= self._window_end:
            self._window_end = math.inf
            self.bucket.fill(now)

    def take(self, amount: float, now: float) -> float:
        """Subtract the amount of a request that is sent. Return the cumulative amount, including it."""
        self.bucket.take(amount, now)
        self._last_sent = now
        self._cumulative += amount
        return self._cumulative

    def give_back(self, amount: float, now: float) -> None:
        """Add the amount of a request that was taken and is not sent."""
        self.bucket.take(-amount, now)
        self._cumulative -= amount

    def update_from_headers(self, status: LimitStatus, cumulative: float, sent_at: float, now: float) -> None:
        """Copy the provider's bucket from the headers of a reply; the reply to the newest request counts."""
        limit, remaining, reset = status
        if sent_at < self._headers_sent_at or now < self._ignore_headers_until:
            return
        if limit < 1 or not 0 <= remaining <= limit:
            return
        rate = self._header_rate = self._rate_of(status)
        self._headers_sent_at, self._last_status = sent_at, status
        self._window_end = now + reset if reset is not None and self._has_fixed_windows else math.inf
        put_back = sum(amount for at, amount in self._put_back if at > cumulative)
        sent_since = max(0.0, self._cumulative - cumulative - put_back)
        filled_since = 0.0 if self._headers_at_reply or self._has_fixed_windows else rate * (now - sent_at)
        self.from_headers, self._searching = True, False
        self.bucket.set(rate, limit, now, remaining - sent_since + (filled_since - rate * RESERVE_SECONDS))

    def _rate_of(self, status: LimitStatus) -> float:
        """Return the rate at which the provider's bucket fills; at least its capacity in a day.

        Headers do not state the period of a limit: usually it is a minute, or the limit is the bucket's capacity. Two
        replies show the rate: during the difference of their resets, the bucket fills by the difference of their
        remainders. If both fall, the limit is a fixed window: nothing is refilled before its end.
        """
        limit, remaining, reset = status
        previous = self._last_status
        if previous is not None and previous.reset is not None and reset is not None:
            later, used = reset - previous.reset, previous.remaining - remaining
            if abs(later) >= MIN_RESET_SECONDS and used / later >= limit / DAY:
                self._has_fixed_windows = False
                return used / later
            self._has_fixed_windows |= used > 0 and later < -MIN_RESET_SECONDS
        if self._has_fixed_windows:
            return limit / WINDOW_FILL_SECONDS
        if self._header_rate is not None and previous is not None and previous.limit == limit:
            return self._header_rate
        if reset is not None and reset >= MIN_RESET_SECONDS and limit - remaining >= MIN_USED_FRACTION * limit:
            return max(limit / DAY, min(limit / MINUTE, (limit - remaining) / reset))
        return limit / MINUTE

    def rate_limited(self, amount: float, cumulative: float, sent_at: float, now: float) -> bool:
        """Learn from the refusal of a request. Return True if the rate is known now.

        Only requests sent before the refused one were accepted for sure: later ones may be refused as well.
        """
        last, was_saturated = self._last_refusal, self.saturated
        accepted = seconds = 0.0
        if last is not None:
            accepted = cumulative - amount - last.cumulative - self._late_refused
            seconds = sent_at - last.sent_at
        self.consecutive_refusals = 1 if last is None or accepted > 0 else self.consecutive_refusals + 1
        self._last_refusal, self._late_refused, self.saturated = _Refusal(sent_at, cumulative), 0.0, True
        if self.from_headers and not self._contradicts_headers(now):
            self._headers_at_reply = True
            self.bucket.empty(now)
            return True
        if not was_saturated:  # caused by requests of another process, or by a limit of another kind
            self.bucket.empty(now)
        elif seconds > 0 and accepted >= amount:
            rate = accepted / seconds
            margin, period = amount / accepted, 2 * seconds
            if self._searching:  # the bucket may have been full for a while, so the measurement is imprecise
                margin, period = MARGIN_AFTER_SEARCH, GROWTH_SECONDS_AFTER_SEARCH
            margin = min(MARGIN_GUESSED, max(MARGIN_KNOWN, margin))
            max_period = max(MAX_GROWTH_SECONDS, MIN_REQUESTS_PER_PERIOD * amount / rate)
            self._restart(rate, margin, min(max_period, max(MIN_GROWTH_SECONDS, period)), now)
        elif self.bucket.rate is not None:  # nothing was accepted since the last refusal
            self._restart(self._plateau / 2, MARGIN_GUESSED, MIN_GROWTH_SECONDS, now)
        return self.bucket.rate is not None

    def _contradicts_headers(self, now: float) -> bool:
        """Count a refusal against the headers. Return True if they are wrong; they are ignored for a while then."""
        self._contradictions = [*(at for at in self._contradictions if at > now - MINUTE), now]
        if len(self._contradictions) > MAX_CONTRADICTIONS:
            self.from_headers, self.bucket.rate = False, None
            self._ignore_headers_until = now + HEADER_BLACKOUT_SECONDS
        return not self.from_headers

    def put_back(self, amount: float, cumulative: float, now: float) -> None:
        """Put back the amount of a request that was refused too, but shows nothing new about this limit."""
        self.bucket.take(-amount, now)
        self._put_back.append((cumulative, amount))
        if self._last_refusal is not None and cumulative > self._last_refusal.cumulative:
            self._late_refused += amount

    def first_success(self, amount: float, now: float) -> None:
        """Start the search for the rate: the first request after a refusal was accepted."""
        if self.bucket.rate is None and self._last_refusal is not None:
            self._plateau = max(self._min_rate, amount / max(now - self._last_refusal.sent_at, CLOCK_RESOLUTION))
            self._since, self._searching = now, True
            self.ramp_up(now)

    def ramp_up(self, now: float) -> None:
        """Set the rate that is due now: doubled during a search, on CUBIC's curve (RFC 9438, section 4) if learned."""
        if self._searching:
            rate = self._plateau * 2 ** min(64.0, (now - self._since) / SEARCH_DOUBLING_SECONDS)
            self.bucket.set(rate, rate * SEARCH_CAPACITY_SECONDS, now)
            return
        if self.from_headers or self.bucket.rate is None:
            return
        progress = min((now - self._since) / self._period - 1, 2.0)  # -1 at the start, 0 at the plateau
        rate = self._plateau * (1 + self._margin * progress**3)
        self.bucket.set(rate, rate * CAPACITY_SECONDS, now)
        if progress == 2.0:  # the limit was raised: continue from here
            self._plateau, self._margin, self._since = rate, MARGIN_GUESSED, now - self._period

    def _restart(self, plateau: float, margin: float, period: float, now: float) -> None:
        """Start a growth curve below its plateau, with an empty bucket."""
        # A limit far below the rate of a search does not exist: little was sent between the refusals.
        plateau = max(plateau, self._min_rate / 10)
        self._plateau, self._margin, self._period, self._since = plateau, margin, period, now
        self._searching = False
        rate = plateau * (1 - margin)
        self.bucket.set(rate, rate * CAPACITY_SECONDS, now, 0.0)
