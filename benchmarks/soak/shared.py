"""What the processes that share a folder must keep together: one rate limit, and one budget at a time."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.soak.server import Sent
from benchmarks.soak.settings import BUDGET_TOKENS, MAX_IN_FLIGHT, REQUESTS_PER_MINUTE, SHARED
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.opening import LOCAL_FOLDER
from embedkit_core.costs.amounts import Amount
from tests.support.openai_replies import tokens_of

WINDOW = 60.0


def violations(sent: Sequence[Sent], events: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Print the worst minute and the budgets; return the violations."""
    requests = [request for request in sent if request.key.startswith(SHARED)]
    return _rate_violations(requests, events) + _budget_violations(requests, events, folder)


def _rate_violations(requests: Sequence[Sent], events: Sequence[dict[str, Any]]) -> list[str]:
    """Check each minute. A process that is stopped may send what it was allowed to before, when it runs again."""
    stops = [event for event in events if event["kind"] == "stop"]
    recent: deque[float] = deque()
    most, found = 0, []
    for at in sorted(request.started for request in requests):
        recent.append(at)
        while recent[0] <= at - WINDOW:
            recent.popleft()
        most = max(most, len(recent))
        late = MAX_IN_FLIGHT * sum(stop["began"] < at and stop["at"] > at - WINDOW for stop in stops)
        if len(recent) > REQUESTS_PER_MINUTE + late:
            found.append(
                f"{len(recent)} requests within a minute, with a limit of {REQUESTS_PER_MINUTE} and {late} late"
            )
    print(f"several processes: {len(requests):,} requests, at most {most} per minute, limit {REQUESTS_PER_MINUTE}")
    return found[:1]


def _budget_violations(requests: Sequence[Sent], events: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    budgets = {event["key"]: event["budget"] for event in events if event["kind"] == "budget"}
    billed: Counter[str] = Counter()
    for request in requests:
        if request.billed:
            billed[budgets[request.key]] += sum(map(tokens_of, request.texts))
    with contextlib.closing(LocalCoordinator(folder / LOCAL_FOLDER)) as coordinator:
        statuses = {status.name: status for status in coordinator.budgets()}
    found = []
    for name, status in statuses.items():
        counted = status.spent.tokens + status.lost.tokens
        print(f"budget {name!r}: {billed[name]:,} tokens billed, {counted:,} of {BUDGET_TOKENS:,} counted")
        if not billed[name] <= counted <= BUDGET_TOKENS:
            found.append(f"budget {name!r}: {billed[name]} tokens billed, {counted} counted, limit {BUDGET_TOKENS}")
        if status.held != Amount():
            found.append(f"budget {name!r} is still held: {status.held}")
    return found + [f"budget {name!r} is not known" for name in billed.keys() - statuses.keys()]
