"""Who waits no more after which time. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from embedkit_core.common.errors import TimedOutError
from embedkit_core.common.formatting import count_noun
from embedkit_core.engine.scheduler.items import Ticket


class Deadlines:
    """The tickets that have a deadline, by when it passes."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._tickets: dict[int, Ticket] = {}

    def add(self, ticket: Ticket) -> None:
        """Note a ticket, if it has a deadline."""
        if ticket.deadline < math.inf:
            heapq.heappush(self._heap, (ticket.deadline, id(ticket)))
            self._tickets[id(ticket)] = ticket

    def drop(self, ticket: Ticket) -> None:
        """Let go of a ticket that is closed."""
        self._tickets.pop(id(ticket), None)

    def expired(self, now: float) -> Iterator[Ticket]:
        """Take out the tickets whose deadline has passed."""
        while self._heap and (self._heap[0][0] <= now or self._heap[0][1] not in self._tickets):
            _, name = heapq.heappop(self._heap)
            ticket = self._tickets.get(name)
            if ticket is not None and ticket.deadline <= now:  # else it is done; the name may be another's by now
                yield ticket

    def next_due(self) -> list[float]:
        """Give the next deadline, if there is one."""
        return [at for at, _ in self._heap[:1]]


def deadline_error(ticket: Ticket) -> TimedOutError:
    """Give the error for what a caller does not wait for any more."""
    under_way = "what was under way is billed all the same: a cache would keep it, deadline= gives it longer"
    if ticket.cache is not None:
        under_way = "what was under way goes to the cache: a rerun sends only the rest, or deadline= gives it longer"
    texts = count_noun(ticket.pending, "text")
    return TimedOutError(f"the call's deadline passed with {texts} waiting or under way; {under_way}")
