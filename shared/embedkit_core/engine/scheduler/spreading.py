"""Spreading of requests over time, so that slots come free evenly and queries wait briefly. No I/O.

Requests of a long call that start together also end together, if the server takes about as long for each. A query then
waits for a slot for up to the time of a request.
"""

from __future__ import annotations

import math

LONG_WAIT = 0.6  # of a query, in request times; slots that come free evenly cause shorter ones
RECENT = 0.2  # weight of the last request in the mean of their times


class RequestSpreader:
    """Delays bulk requests for the time of one request after a query has waited long for a slot.

    They then start at equal distances, and go on so: each is started when an earlier one ends. So a call is delayed by
    at most the time of one request, unless slots come free together again.
    """

    def __init__(self) -> None:
        self._seconds = 0.0  # mean time of a request
        self._waiting_since: float | None = None
        self._started_at = self._until = -math.inf

    def replied(self, seconds: float, *, is_query: bool) -> None:
        """Count the time of a request with bulk."""
        if not is_query:
            self._seconds += (RECENT if self._seconds else 1.0) * (seconds - self._seconds)

    def query_waits(self, now: float) -> None:
        """Note that a query waits, because no slot is free."""
        if self._waiting_since is None:
            self._waiting_since = now

    def no_query_waits(self) -> None:
        """Note that no query waits."""
        self._waiting_since = None

    def started(self, now: float, *, is_query: bool) -> None:
        """Note the start of a request."""
        self._started_at = now
        if is_query and self._waiting_since is not None:
            if now - self._waiting_since > LONG_WAIT * self._seconds:
                self._until = now + self._seconds
            self._waiting_since = None

    def not_before(self, now: float, slots: int) -> float:
        """Return the time before which no bulk request is to be started, with so many requests in flight at most."""
        return now if now >= self._until else min(self._until, self._started_at + self._seconds / slots)
