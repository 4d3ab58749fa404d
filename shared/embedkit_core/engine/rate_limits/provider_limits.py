"""What may flow of one thing, requests or tokens, in a second: told by the user or the provider, or learned. Pure.

A bucket fills at a rate up to what it holds, and every request takes from it. The user's is given; the provider's is
copied from what its headers say is left, or, where it says nothing, learned from its refusals: between two of them the
bucket was empty twice, so what was let through meanwhile is what it filled.
"""

from __future__ import annotations

import math

from embedkit_core.common.types import LimitStatus

MINUTE, DAY = 60.0, 86_400.0
CLOCK_RESOLUTION = 1e-6  # seconds that a clock need not tell apart
MIN_RESET_SECONDS = 0.1  # seconds under which a reset is too coarse to tell a rate by
MARGIN_KNOWN, MARGIN_GUESSED = 0.05, 0.4  # how far under a learned rate to begin again: by how well it is known
SEARCH_DOUBLING_SECONDS = 0.3  # seconds in which a rate that is not known yet doubles, until it is refused
GROWTH_SECONDS = (
    1.0,
    10.0,
)  # seconds until a learned rate is passed: twice the time that it was learned in, within these
MIN_USED_FRACTION = 0.01  # of a limit that must have been used for its reset to tell a rate
WINDOW_FILL_SECONDS = 1e9  # seconds in which a bucket fills that is filled at once when its window ends
RESERVE_SECONDS = (
    0.02  # seconds of a told rate that are left: requests arrive a little earlier or later than they are sent
)
MAX_CONTRADICTIONS, HEADER_BLACKOUT_SECONDS = (
    3,
    300.0,
)  # refusals a minute with which headers are believed, and seconds in which they are not
MIN_REQUESTS_PER_PERIOD = 25  # requests that are sent until then at least, however slow the rate
AFTER_SEARCH = (0.2, 1.5)  # how far under, and for how many seconds, after a search
CAPACITY_SECONDS, SEARCH_CAPACITY_SECONDS = (
    5.0,
    0.2,
)  # seconds of a learned rate that its bucket is taken to hold: nothing tells


class TokenBucket:
    """Holds what may be taken now, `capacity` at most; no rate means that nothing is known to bind."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self.capacity = 0.0
        self._level = 0.0
        self._at = 0.0

    def level(self, now: float) -> float:
        """Give what may be taken now; what was taken in advance is owed."""
        return min(self.capacity, self._level + (self.rate or 0.0) * max(0.0, now - self._at))

    def set(self, rate: float, capacity: float, now: float, level: float | None = None) -> None:
        """Fill at another rate from now on; what is in it stays, unless a level is given."""
        if level is None and self.rate is not None:
            left = self.level(now)
            level = capacity if left >= self.capacity else left  # a full one stays full, however much more it holds now
        self.rate, self.capacity, self._at = rate, capacity, now
        self._level = capacity if level is None else min(level, capacity)

    def wait(self, amount: float, now: float) -> float:
        """Give the seconds until so much may be taken; more than it holds may be taken when it is full."""
        if self.rate is None:
            return 0.0
        lack = min(amount, self.capacity) - self.level(now)
        return max(0.0, lack / self.rate) if lack > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take out, or with a negative amount put back."""
        self._level, self._at = self.level(now) - amount, now

    def empty(self, now: float) -> None:
        """Take out all there is; what is owed stays owed."""
        self.take(max(0.0, self.level(now)), now)

    def fill(self, now: float) -> None:
        """Make it full at once."""
        self._level, self._at = self.capacity, now


class ProviderLimit:
    """The provider's bucket for one thing, as far as it shows: `told` by its headers, or learned from refusals.

    `busy` says that since the last refusal there was always more to send: only then is what was let through the rate.
    `in_a_row` counts refusals between which nothing was let through.
    """

    def __init__(self, slowest: float) -> None:
        self.bucket = TokenBucket()
        self.from_headers = False
        self._min_rate = slowest
        self._window_ends = math.inf
        self._has_fixed_windows = False
        self.busy = True
        self.consecutive = 0
        self._taken = 0.0  # in all, with what was refused
        self._headers_are_late = False  # what the headers say is as of the answer, not of the question
        self._headers_sent_at = self._blackout_until = float("-inf")
        self._last_status: LimitStatus | None = None
        self._header_rate: float | None = None
        self._contradictions: list[float] = []
        self._last_refusal: tuple[float, float] | None = None  # when the last refused request went out, and its mark
        self._refused_since = 0.0
        self._searching = False
        # The curve by which a learned rate grows: what it comes back to, from how far under, when, and since when.
        self._plateau, self._margin, self._period, self._since = 0.0, MARGIN_KNOWN, GROWTH_SECONDS[1], 0.0

    def wait(self, amount: float, now: float) -> float:
        """Give the seconds until so much may be taken, or until it is worth to ask again."""
        self.ramp_up(now)
        if self._has_fixed_windows and now >= self._window_ends:
            self._window_ends = math.inf
            self.bucket.fill(now)
        seconds = self.bucket.wait(amount, now)
        if self._has_fixed_windows:
            return min(seconds, self._window_ends - now)
        return (
            seconds if self.from_headers else min(seconds, SEARCH_DOUBLING_SECONDS)
        )  # a rate that is learned grows meanwhile

    def take(self, amount: float, now: float) -> float:
        """Note a request that goes out, and give the mark by which it is known later."""
        self.bucket.take(amount, now)
        self._taken += amount
        return self._taken

    def update_from_headers(self, allowance: LimitStatus, mark: float, sent_at: float, now: float) -> None:
        """Copy what the provider says of its bucket with the answer to a request; the newest request's word counts."""
        limit, remaining, reset = allowance
        if sent_at < self._headers_sent_at or limit < 1 or not 0 <= remaining <= limit or now < self._blackout_until:
            return
        rate = self._header_rate = self._rate_of(allowance)
        self._headers_sent_at, self._last_status = sent_at, allowance
        self._window_ends = now + reset if reset is not None and self._has_fixed_windows else math.inf
        flown = (
            0.0 if self._headers_are_late or self._has_fixed_windows else rate * (now - sent_at)
        ) - rate * RESERVE_SECONDS
        self.from_headers, self._searching = True, False
        self.bucket.set(rate, limit, now, remaining - max(0.0, self._taken - mark) + flown)

    def _rate_of(self, allowance: LimitStatus) -> float:
        """Give the rate at which the provider's bucket fills, all of it in a day at least.

        What a limit counts is not said: a minute, as a rule, or what the bucket holds. Two answers tell: in the time
        by which their resets differ, the bucket fills by what the remainders differ by. Where less is left and the
        reset is nearer all the same, nothing is filled up before the window ends.
        """
        limit, remaining, reset = allowance
        before = self._last_status
        if before is not None and before.reset is not None and reset is not None:
            later, less = reset - before.reset, before.remaining - remaining
            if abs(later) >= MIN_RESET_SECONDS and less / later >= limit / DAY:
                self._has_fixed_windows = False
                return less / later
            self._has_fixed_windows |= less > 0 and later < -MIN_RESET_SECONDS
        if self._has_fixed_windows:
            return limit / WINDOW_FILL_SECONDS
        if self._header_rate is not None and before is not None and before.limit == limit:
            return self._header_rate
        if reset is not None and reset >= MIN_RESET_SECONDS and limit - remaining >= MIN_USED_FRACTION * limit:
            return max(limit / DAY, min(limit / MINUTE, (limit - remaining) / reset))
        return limit / MINUTE

    def rate_limited(self, amount: float, mark: float, sent_at: float, now: float) -> bool:
        """Learn from a refusal of so much, and say whether a rate is known now.

        Only what went out before the refused request is sure to have been let through: what came after it may be
        refused as well.
        """
        bucket, last, busy, taken, seconds = self.bucket, self._last_refusal, self.busy, 0.0, 0.0
        if last is not None:
            taken, seconds = mark - amount - last[1] - self._refused_since, sent_at - last[0]
        self.consecutive = 1 if last is None or taken > 0 else self.consecutive + 1
        self._last_refusal, self._refused_since, self.busy = (sent_at, mark), 0.0, True
        if self.from_headers and not self._contradicts_headers(now):
            self._headers_are_late = True
            bucket.empty(now)
            return True
        if not busy:  # somebody else's requests, or a limit of another kind
            bucket.empty(now)
        elif seconds > 0 and taken >= amount:
            margin, period = amount / taken, 2 * seconds
            if self._searching:  # while it was looked for, the bucket may have run over
                margin, period = AFTER_SEARCH
            rate = taken / seconds
            longest = max(GROWTH_SECONDS[1], MIN_REQUESTS_PER_PERIOD * amount / rate)
            self._restart(
                rate, min(MARGIN_GUESSED, max(MARGIN_KNOWN, margin)), min(longest, max(GROWTH_SECONDS[0], period)), now
            )
        elif bucket.rate is not None:  # nothing got through since the last one
            self._restart(self._plateau / 2, MARGIN_GUESSED, GROWTH_SECONDS[0], now)
        return bucket.rate is not None

    def _contradicts_headers(self, now: float) -> bool:
        """Tell whether refusals have come too often for what the provider says of its limits to be true."""
        self._contradictions = [*(at for at in self._contradictions if at > now - MINUTE), now]
        if len(self._contradictions) > MAX_CONTRADICTIONS:
            self.from_headers, self.bucket.rate, self._blackout_until = False, None, now + HEADER_BLACKOUT_SECONDS
        return not self.from_headers

    def late_rate_limit(self, amount: float, mark: float, now: float) -> None:
        """Take in that a request which was under way at the last refusal was refused as well."""
        self.bucket.take(-amount, now)
        if self._last_refusal is not None and mark > self._last_refusal[1]:
            self._refused_since += amount

    def first_success(self, amount: float, now: float) -> None:
        """Take in that the first request after a refusal was let through: from here on the rate is looked for."""
        if self.bucket.rate is None and self._last_refusal is not None:
            self._plateau = max(self._min_rate, amount / max(now - self._last_refusal[0], CLOCK_RESOLUTION))
            self._since, self._searching = now, True
            self.ramp_up(now)

    def ramp_up(self, now: float) -> None:
        """Double a rate that is looked for; let a learned one come back to where it was refused, and then go beyond.

        The curve of a learned rate is CUBIC's: it stays about there for a while, RFC 9438, section 4.
        """
        if self._searching:
            rate = self._plateau * 2 ** min(64.0, (now - self._since) / SEARCH_DOUBLING_SECONDS)
            self.bucket.set(rate, rate * SEARCH_CAPACITY_SECONDS, now)
            return
        if self.from_headers or self.bucket.rate is None:
            return
        beyond = min((now - self._since) / self._period - 1, 2.0)
        rate = self._plateau * (1 + self._margin * beyond**3)
        self.bucket.set(rate, rate * CAPACITY_SECONDS, now)
        if beyond == 2.0:  # the limit is another by now: on from here
            self._plateau, self._margin, self._since = rate, MARGIN_GUESSED, now - self._period

    def _restart(self, plateau: float, margin: float, period: float, now: float) -> None:
        """Begin a learned rate with an empty bucket, somewhat under what was let through.

        A limit that is slower yet does not exist: between the refusals little was sent.
        """
        plateau = max(plateau, self._min_rate / 10)
        self._plateau, self._margin, self._period, self._since = plateau, margin, period, now
        self._searching = False
        rate = plateau * (1 - margin)
        self.bucket.set(rate, rate * CAPACITY_SECONDS, now, 0.0)
