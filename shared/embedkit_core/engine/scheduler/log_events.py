"""Log events for callers: at most about one line a second per model and kind. No I/O.

The engine only records events, since a user's log handler must not run on its thread. Callers log them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from embedkit_core.common.errors import ProviderError
from embedkit_core.common.formatting import count_noun
from embedkit_core.engine.scheduler.items import Item, LogEvent, Ticket
from embedkit_core.engine.scheduler.queues import Request

MIN_INTERVAL_SECONDS = 1.0  # between two events of one topic about one model


class LogThrottle:
    """The log events of one account: the time of the last one of each topic, and how many were suppressed since."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, str], float] = {}
        self._suppressed: dict[tuple[str, str], int] = {}

    def retrying(self, request: Request, error: ProviderError, texts: int, delay: float, now: float) -> None:
        """Record that so many texts of a failed request will be sent again."""
        cause = f"HTTP {error.status}" if error.status is not None else "no response"
        retry = f"Retrying {count_noun(texts, 'text')} in {delay:.1f} s"
        self._write(
            request.queue.spec.model, request.items, "retry", f"{retry} after {type(error).__name__} ({cause})", now
        )

    def limit_learned(self, request: Request, limit: str, now: float) -> None:
        """Record a limit that was unknown before."""
        self._write(request.queue.spec.model, request.items, "limit", limit, now)

    def waiting_for_quota(self, model: str, items: Iterable[Item], header: str, seconds: float, now: float) -> None:
        """Record that items wait long for a quota that is too low for them according to a header of the provider."""
        self._write(
            model, items, header, f"Waiting {seconds:.0f} s for a quota: the header {header} shows too little left", now
        )

    def _write(self, model: str, items: Iterable[Item], topic: str, text: str, now: float) -> None:
        key = (model, topic)
        if now - self._written.get(key, -MIN_INTERVAL_SECONDS) < MIN_INTERVAL_SECONDS:
            self._suppressed[key] = self._suppressed.get(key, 0) + 1
            return
        self._written[key] = now
        suppressed = self._suppressed.pop(key, 0)
        suffix = f" ({suppressed:,} similar events suppressed)" if suppressed else ""
        tickets = {waiter.ticket for item in items for waiter in item.waiters}
        _deliver(tickets, LogEvent(logging.INFO, f"{model}: {text}{suffix}"))


def _deliver(tickets: Iterable[Ticket], event: LogEvent) -> None:
    """Hand an event to one of the callers it concerns."""
    for ticket in tickets:
        if not ticket.closed:
            ticket.log_events.append(event)
            if ticket.notify is not None:
                ticket.notify()
            return
