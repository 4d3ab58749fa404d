"""What happens that is worth a person's time, told to the callers it concerns: at most about a line a second of a kind.

The engine writes notes and never logs: a handler of the user's must not run on its thread. Callers log them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from embedkit_core.common.errors import ProviderError
from embedkit_core.common.formatting import counted_noun
from embedkit_core.engine.scheduler.items import Note, Ticket
from embedkit_core.engine.scheduler.queues import Flight

OFTEN = 1.0  # seconds between two notes of one kind about one model


class Notes:
    """The notes of one account: when the last of each kind was written, and how many were left out since."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def failed(self, flight: Flight, error: ProviderError, texts: int, delay: float, now: float) -> None:
        """Note a failure after which so many texts of a request are sent again."""
        said = f"HTTP {error.status}" if error.status is not None else "no answer"
        again = f"{counted_noun(texts, 'text')} will be sent again in {delay:.1f} s"
        self._write(flight, "retry", f"{type(error).__name__} ({said}): {again}", now)

    def learned(self, flight: Flight, what: str, now: float) -> None:
        """Note a limit that is known from now on."""
        self._write(flight, "limit", f"from now on {what}", now)

    def _write(self, flight: Flight, kind: str, text: str, now: float) -> None:
        model = flight.lane.lane.model
        name = (model, kind)
        if now - self._written.get(name, -OFTEN) < OFTEN:
            self._left_out[name] = self._left_out.get(name, 0) + 1
            return
        self._written[name] = now
        more = self._left_out.pop(name, 0)
        since = f" (and {more:,} more like it since the last line)" if more else ""
        _tell({w.ticket for item in flight.items for w in item.waiters}, Note(logging.INFO, f"{model}: {text}{since}"))


def _tell(tickets: Iterable[Ticket], note: Note) -> None:
    for ticket in tickets:
        if not ticket.closed:
            ticket.notes.append(note)
            if ticket.stir is not None:
                ticket.stir()
            return  # one of them tells it
