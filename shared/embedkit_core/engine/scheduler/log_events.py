"""What happens that is worth a person's time, told to the callers it concerns: at most about a line a second of a kind.

The engine writes notes and never logs: a handler of the user's must not run on its thread. Callers log them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from embedkit_core.common.errors import ProviderError
from embedkit_core.common.formatting import count_noun
from embedkit_core.engine.scheduler.items import LogEvent, Ticket
from embedkit_core.engine.scheduler.queues import Request

MIN_INTERVAL_SECONDS = 1.0  # seconds between two notes of one kind about one model


class LogThrottle:
    """The notes of one account: when the last of each kind was written, and how many were left out since."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, str], float] = {}
        self._suppressed: dict[tuple[str, str], int] = {}

    def retrying(self, request: Request, error: ProviderError, texts: int, delay: float, now: float) -> None:
        """Note a failure after which so many texts of a request are sent again."""
        said = f"HTTP {error.status}" if error.status is not None else "no answer"
        again = f"{count_noun(texts, 'text')} will be sent again in {delay:.1f} s"
        self._write(request, "retry", f"{type(error).__name__} ({said}): {again}", now)

    def learned(self, request: Request, what: str, now: float) -> None:
        """Note a limit that is known from now on."""
        self._write(request, "limit", f"from now on {what}", now)

    def _write(self, request: Request, kind: str, text: str, now: float) -> None:
        model = request.queue.spec.model
        name = (model, kind)
        if now - self._written.get(name, -MIN_INTERVAL_SECONDS) < MIN_INTERVAL_SECONDS:
            self._suppressed[name] = self._suppressed.get(name, 0) + 1
            return
        self._written[name] = now
        more = self._suppressed.pop(name, 0)
        since = f" (and {more:,} more like it since the last line)" if more else ""
        _deliver(
            {w.ticket for item in request.items for w in item.waiters},
            LogEvent(logging.INFO, f"{model}: {text}{since}"),
        )


def _deliver(tickets: Iterable[Ticket], note: LogEvent) -> None:
    for ticket in tickets:
        if not ticket.closed:
            ticket.log_events.append(note)
            if ticket.notify is not None:
                ticket.notify()
            return  # one of them tells it
