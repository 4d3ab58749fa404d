"""What may flow of one thing, requests or tokens, in a second: told by the user or the provider, or learned. Pure.

A bucket fills at a rate up to what it holds, and every request takes from it. The user's is given; the provider's is
copied from what its headers say is left, or, where it says nothing, learned from its refusals: between two of them the
bucket was empty twice, so what was let through meanwhile is what it filled.
"""

from __future__ import annotations

import math

from embedkit_core.common.types import Allowance

MINUTE, DAY = 60.0, 86_400.0
INSTANT = 1e-6  # seconds that a clock need not tell apart
SHORTEST_RESET = 0.1  # seconds under which a reset is too coarse to tell a rate by
SURE, UNSURE = 0.05, 0.4  # how far under a learned rate to begin again: by how well it is known
SEARCH = 0.3  # seconds in which a rate that is not known yet doubles, until it is refused
GROWTH = (1.0, 10.0)  # seconds until a learned rate is passed: twice the time that it was learned in, within these
SAMPLE = 0.01  # of a limit that must have been used for its reset to tell a rate
FOREVER = 1e9  # seconds in which a bucket fills that is filled at once when its window ends
RESERVE = 0.02  # seconds of a told rate that are left: requests arrive a little earlier or later than they are sent
BELIEF, DEAF = 3, 300.0  # refusals a minute with which headers are believed, and seconds in which they are not
ROUNDS = 25  # requests that are sent until then at least, however slow the rate
SEARCHED = (0.2, 1.5)  # how far under, and for how many seconds, after a search
HELD, HELD_IN_SEARCH = 5.0, 0.2  # seconds of a learned rate that its bucket is taken to hold: nothing tells


class Bucket:
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


class Flow:
    """The provider's bucket for one thing, as far as it shows: `told` by its headers, or learned from refusals.

    `busy` says that since the last refusal there was always more to send: only then is what was let through the rate.
    `in_a_row` counts refusals between which nothing was let through.
    """

    def __init__(self, slowest: float) -> None:
        self.bucket = Bucket()
        self.told = False
        self._slowest = slowest
        self._window_ends = math.inf
        self._in_windows = False
        self.busy = True
        self.in_a_row = 0
        self._taken = 0.0  # in all, with what was refused
        self._late = False  # what the headers say is as of the answer, not of the question
        self._heard_of = self._deaf_until = float("-inf")
        self._heard: Allowance | None = None
        self._told_rate: float | None = None
        self._surprises: list[float] = []
        self._last: tuple[float, float] | None = None  # when the last refused request went out, and its mark
        self._refused_since = 0.0
        self._searching = False
        # The curve by which a learned rate grows: what it comes back to, from how far under, when, and since when.
        self._plateau, self._margin, self._period, self._since = 0.0, SURE, GROWTH[1], 0.0

    def wait(self, amount: float, now: float) -> float:
        """Give the seconds until so much may be taken, or until it is worth to ask again."""
        self.grow(now)
        if self._in_windows and now >= self._window_ends:
            self._window_ends = math.inf
            self.bucket.fill(now)
        seconds = self.bucket.wait(amount, now)
        if self._in_windows:
            return min(seconds, self._window_ends - now)
        return seconds if self.told else min(seconds, SEARCH)  # a rate that is learned grows meanwhile

    def take(self, amount: float, now: float) -> float:
        """Note a request that goes out, and give the mark by which it is known later."""
        self.bucket.take(amount, now)
        self._taken += amount
        return self._taken

    def hear(self, allowance: Allowance, mark: float, sent_at: float, now: float) -> None:
        """Copy what the provider says of its bucket with the answer to a request; the newest request's word counts."""
        limit, remaining, reset = allowance
        if sent_at < self._heard_of or limit < 1 or not 0 <= remaining <= limit or now < self._deaf_until:
            return
        rate = self._told_rate = self._rate_of(allowance)
        self._heard_of, self._heard = sent_at, allowance
        self._window_ends = now + reset if reset is not None and self._in_windows else math.inf
        flown = (0.0 if self._late or self._in_windows else rate * (now - sent_at)) - rate * RESERVE
        self.told, self._searching = True, False
        self.bucket.set(rate, limit, now, remaining - max(0.0, self._taken - mark) + flown)

    def _rate_of(self, allowance: Allowance) -> float:
        """Give the rate at which the provider's bucket fills, all of it in a day at least.

        What a limit counts is not said: a minute, as a rule, or what the bucket holds. Two answers tell: in the time
        by which their resets differ, the bucket fills by what the remainders differ by. Where less is left and the
        reset is nearer all the same, nothing is filled up before the window ends.
        """
        limit, remaining, reset = allowance
        before = self._heard
        if before is not None and before.reset is not None and reset is not None:
            later, less = reset - before.reset, before.remaining - remaining
            if abs(later) >= SHORTEST_RESET and less / later >= limit / DAY:
                self._in_windows = False
                return less / later
            self._in_windows |= less > 0 and later < -SHORTEST_RESET
        if self._in_windows:
            return limit / FOREVER
        if self._told_rate is not None and before is not None and before.limit == limit:
            return self._told_rate
        if reset is not None and reset >= SHORTEST_RESET and limit - remaining >= SAMPLE * limit:
            return max(limit / DAY, min(limit / MINUTE, (limit - remaining) / reset))
        return limit / MINUTE

    def refused(self, amount: float, mark: float, sent_at: float, now: float) -> bool:
        """Learn from a refusal of so much, and say whether a rate is known now.

        Only what went out before the refused request is sure to have been let through: what came after it may be
        refused as well.
        """
        bucket, last, busy, taken, seconds = self.bucket, self._last, self.busy, 0.0, 0.0
        if last is not None:
            taken, seconds = mark - amount - last[1] - self._refused_since, sent_at - last[0]
        self.in_a_row = 1 if last is None or taken > 0 else self.in_a_row + 1
        self._last, self._refused_since, self.busy = (sent_at, mark), 0.0, True
        if self.told and not self._disbelieves(now):
            self._late = True
            bucket.empty(now)
            return True
        if not busy:  # somebody else's requests, or a limit of another kind
            bucket.empty(now)
        elif seconds > 0 and taken >= amount:
            margin, period = amount / taken, 2 * seconds
            if self._searching:  # while it was looked for, the bucket may have run over
                margin, period = SEARCHED
            rate = taken / seconds
            longest = max(GROWTH[1], ROUNDS * amount / rate)
            self._begin(rate, min(UNSURE, max(SURE, margin)), min(longest, max(GROWTH[0], period)), now)
        elif bucket.rate is not None:  # nothing got through since the last one
            self._begin(self._plateau / 2, UNSURE, GROWTH[0], now)
        return bucket.rate is not None

    def _disbelieves(self, now: float) -> bool:
        """Tell whether refusals have come too often for what the provider says of its limits to be true."""
        self._surprises = [*(at for at in self._surprises if at > now - MINUTE), now]
        if len(self._surprises) > BELIEF:
            self.told, self.bucket.rate, self._deaf_until = False, None, now + DEAF
        return not self.told

    def refused_too(self, amount: float, mark: float, now: float) -> None:
        """Take in that a request which was under way at the last refusal was refused as well."""
        self.bucket.take(-amount, now)
        if self._last is not None and mark > self._last[1]:
            self._refused_since += amount

    def passed(self, amount: float, now: float) -> None:
        """Take in that the first request after a refusal was let through: from here on the rate is looked for."""
        if self.bucket.rate is None and self._last is not None:
            self._plateau = max(self._slowest, amount / max(now - self._last[0], INSTANT))
            self._since, self._searching = now, True
            self.grow(now)

    def grow(self, now: float) -> None:
        """Double a rate that is looked for; let a learned one come back to where it was refused, and then go beyond.

        The curve of a learned rate is CUBIC's: it stays about there for a while, RFC 9438, section 4.
        """
        if self._searching:
            rate = self._plateau * 2 ** min(64.0, (now - self._since) / SEARCH)
            self.bucket.set(rate, rate * HELD_IN_SEARCH, now)
            return
        if self.told or self.bucket.rate is None:
            return
        beyond = min((now - self._since) / self._period - 1, 2.0)
        rate = self._plateau * (1 + self._margin * beyond**3)
        self.bucket.set(rate, rate * HELD, now)
        if beyond == 2.0:  # the limit is another by now: on from here
            self._plateau, self._margin, self._since = rate, UNSURE, now - self._period

    def _begin(self, plateau: float, margin: float, period: float, now: float) -> None:
        """Begin a learned rate with an empty bucket, somewhat under what was let through.

        A limit that is slower yet does not exist: between the refusals little was sent.
        """
        plateau = max(plateau, self._slowest / 10)
        self._plateau, self._margin, self._period, self._since = plateau, margin, period, now
        self._searching = False
        rate = plateau * (1 - margin)
        self.bucket.set(rate, rate * HELD, now, 0.0)
