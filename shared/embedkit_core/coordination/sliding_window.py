"""An exact limit per minute: the amounts of the last minute, by time. No I/O.

No interval of 60 seconds has more than the limit, whenever it begins. A job that fits into what is left is not delayed.
A larger one is paced over the minute, so that it does not send in bursts a minute apart.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import NamedTuple

from embedkit_core.common.types import RateSettings

MINUTE = 60.0
# An amount counts a little longer than a minute: a request arrives some time after it is sent, and amounts that are
# taken within a resolution count together until the last of them expires.
MARGIN, RESOLUTION = 0.2, 0.1
QUERY_SHARE = 0.05  # of a limit; kept for queries
BURST_SECONDS = 2.0  # of the paced rate, that a job may fall behind and catch up


class SlidingWindow:
    """The amounts that were taken within the last minute, also in advance.

    Each caller states its own limit: one history serves all.
    """

    __slots__ = ("_amounts", "_times", "_total")

    def __init__(self, state: bytes = b"") -> None:
        """Create a window, from the state of another one or without entries."""
        numbers = array("d", state)
        self._times, self._amounts = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        if len(self._times) != len(self._amounts):
            raise ValueError(f"state: not of a window (got {len(state)} bytes). Pass what state() returned.")
        self._total = sum(self._amounts)

    def state(self) -> bytes:
        """Return the state, for the constructor."""
        return self._times.tobytes() + self._amounts.tobytes()

    def used(self, now: float) -> float:
        """Return the amount of the last minute."""
        times, amounts = self._times, self._amounts
        expired = 0
        while expired < len(times) and times[expired] + MINUTE + MARGIN + RESOLUTION <= now:
            self._total -= amounts[expired]
            expired += 1
        if expired:
            del times[:expired], amounts[:expired]
        if not times:
            self._total = 0.0
        return max(0.0, self._total)

    def wait(self, amount: float, limit: int, now: float, *, is_query: bool, demand: float) -> float:
        """Return the seconds until an amount may be taken.

        Args:
            amount: The amount. If it exceeds the limit, it must wait until the window is empty.
            limit: The limit per minute.
            now: The current time.
            is_query: True for queries, which may use the whole limit and are not paced.
            demand: Everything that waits to be taken, including `amount`.
        """
        usable = limit if is_query else bulk_limit(limit)
        excess = self.used(now) + min(amount, usable) - usable
        free_at = now
        for at, taken in zip(self._times, self._amounts, strict=True):
            if excess <= 1e-9:
                break
            excess -= taken
            free_at = at + MINUTE + MARGIN + RESOLUTION
        if not is_query and self.is_paced(limit, now, demand=demand):
            free_at = max(free_at, self._paced_until(limit))
        return max(0.0, free_at - now)

    def is_paced(self, limit: int, now: float, *, demand: float) -> bool:
        """Return True if so much demand does not fit into what is left of the minute."""
        return demand > bulk_limit(limit) - self.used(now)

    def _paced_until(self, limit: int) -> float:
        """Return the time until which the amounts of the last minute last at the average rate of a limit.

        It is computed from the amounts: a caller with a lower limit must not delay those with higher ones.
        """
        seconds = MINUTE / bulk_limit(limit)
        until = at = float("-inf")
        for at, amount in zip(self._times, self._amounts, strict=True):
            until = max(until, at - BURST_SECONDS) + amount * seconds
        return min(until, at + MINUTE + MARGIN + RESOLUTION)

    def take(self, amount: float, at: float, now: float) -> None:
        """Record an amount at a time, which may lie ahead. A negative amount is given back."""
        self.used(now)
        index = bisect_right(self._times, at)
        if index and at - self._times[index - 1] < RESOLUTION:
            self._amounts[index - 1] += amount
        else:
            self._times.insert(index, at)
            self._amounts.insert(index, amount)
        self._total += amount

    def correct(self, amount: float, at: float, new_amount: float, new_at: float, now: float) -> None:
        """Replace an amount that was taken by another one, or by one at a later time."""
        if new_at - at > RESOLUTION:
            self.take(-amount, at, now)
            self.take(new_amount, new_at, now)
        elif new_amount != amount:
            self.take(new_amount - amount, at, now)


class Demand(NamedTuple):
    """The requests and tokens that wait to be sent, including those of the request that asks."""

    requests: float
    tokens: float


@dataclass(slots=True)
class MinuteUsage:
    """The requests and tokens of one model in the last minute.

    Attributes:
        requests: The requests.
        tokens: The tokens.
    """

    requests: SlidingWindow = field(default_factory=SlidingWindow)
    tokens: SlidingWindow = field(default_factory=SlidingWindow)

    def wait(self, tokens: float, limits: RateSettings, now: float, *, is_query: bool, demand: Demand) -> float:
        """Return the seconds until a request of so many tokens may be sent."""
        seconds = 0.0
        for window, amount, limit, waiting in (
            (self.requests, 1.0, limits.requests_per_minute, demand.requests),
            (self.tokens, tokens, limits.tokens_per_minute, demand.tokens),
        ):
            if limit is not None:
                seconds = max(seconds, window.wait(amount, limit, now, is_query=is_query, demand=waiting))
        return seconds

    def take(self, tokens: float, at: float, now: float) -> None:
        """Record a request at a time, which may lie ahead."""
        self.requests.take(1, at, now)
        self.tokens.take(tokens, at, now)

    def correct(self, tokens: float, at: float, new_tokens: float, new_at: float, now: float) -> None:
        """Replace the tokens of a request that was recorded, or its time by a later one."""
        self.requests.correct(1, at, 1, new_at, now)
        self.tokens.correct(tokens, at, new_tokens, new_at, now)

    def give_back(self, tokens: float, at: float, now: float) -> None:
        """Forget a request that was not sent."""
        self.requests.correct(1, at, 0, at, now)
        self.tokens.correct(tokens, at, 0, at, now)


def paced_seconds(amount: float, limit: int) -> float:
    """Return the seconds that a job takes from an empty window on; 0 if it fits into a minute."""
    return 0.0 if amount <= bulk_limit(limit) else MINUTE * amount / bulk_limit(limit)


def bulk_limit(limit: int) -> int:
    """Return the part of a limit that is not kept for queries."""
    return limit - int(limit * QUERY_SHARE)
