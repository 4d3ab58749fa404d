"""Deadlines of calls. No I/O."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from embedkit_core.common.errors import TimedOutError
from embedkit_core.common.formatting import count_noun
from embedkit_core.engine.scheduler.items import Ticket


class Deadlines:
    """The open tickets that have a deadline, ordered by it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._tickets: dict[int, Ticket] = {}

    def add(self, ticket: Ticket) -> None:
        """Add a ticket, if it has a deadline."""
        if ticket.deadline < math.inf:
            heapq.heappush(self._heap, (ticket.deadline, id(ticket)))
            self._tickets[id(ticket)] = ticket

    def drop(self, ticket: Ticket) -> None:
        """Remove a closed ticket."""
        self._tickets.pop(id(ticket), None)

    def expired(self, now: float) -> Iterator[Ticket]:
        """Remove and yield the tickets whose deadline has passed."""
        while self._heap and (self._heap[0][0] <= now or self._heap[0][1] not in self._tickets):
            _, ticket_id = heapq.heappop(self._heap)
            ticket = self._tickets.get(ticket_id)
            if ticket is not None and ticket.deadline <= now:  # else it is closed, and its id may be in use again
                yield ticket

    def next_due(self) -> list[float]:
        """Return the next deadline as a list; empty if there is none."""
        return [at for at, _ in self._heap[:1]]


def deadline_error(ticket: Ticket) -> TimedOutError:
    """Return the error for the texts of a call whose deadline has passed."""
    advice = "Requests in flight are billed, and their vectors are lost without cache=. Increase deadline=."
    if ticket.cache is not None:
        advice = "Requests in flight still go to the cache: a rerun sends only the rest. Or increase deadline=."
    texts = count_noun(ticket.pending, "text")
    controller, failed = ticket.rate_controller, any(item.failures for item in ticket.items)
    if failed and controller is not None and controller.last_failure is not None:
        advice = f"The last failure was {controller.last_failure}. {advice}"
    return TimedOutError(f"The call's deadline passed with {texts} waiting or in flight. {advice}")
