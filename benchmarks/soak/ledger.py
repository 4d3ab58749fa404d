"""For each text, compare how often it was billed with the recorded causes of repeated billing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.soak.server import Sent
from benchmarks.soak.settings import MAX_IN_FLIGHT, SHARED

COMMIT_SECONDS = 3.0  # between an answer and its commit, on a busy machine
STOP_SECONDS = 3.0  # until a stopped process, when it runs again, knows that it has lost its texts
QUERY_SECONDS = 10.0  # between the requests of two processes for a query: longer than a request takes
# In warnings of the library. A process that is stopped while it holds a lock stops the coordination of the others.
CACHE_PROBLEMS = ("cannot be written", "cannot be read", "is off, so texts", "Coordination of processes")


class Ledger:
    """Assigns a cause to every repeated billing of a text.

    A text is billed once, and once more for each request that was lost after the work was done, for each request that
    was in flight when its process was killed or stopped, and each time that its cached vector was damaged or its cache
    was lost. A query that waits for another process for too long is billed there too.

    Attributes:
        causes: how often each cause was needed.
        violations: what has no cause.
        billed_once: the number of texts that were kept once.
    """

    def __init__(self, sent: Sequence[Sent], events: Sequence[dict[str, Any]]) -> None:
        self.causes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.billed_once = 0
        self._kills = [event for event in events if event["kind"] == "kill"]
        self._stops = [event for event in events if event["kind"] == "stop"]
        self._problem_since = self._first_cache_problems(events)
        self._damaged = Counter(event["text"] for event in events if event["kind"] == "damaged value")
        self._lost_caches = Counter(event["lineage"] for event in events if event["kind"] == "lost cache")
        self._in_flight_at_kill: dict[str, set[int]] = defaultdict(set)
        self._settle(sent)
        for key, numbers in self._in_flight_at_kill.items():
            if len(numbers) > MAX_IN_FLIGHT:
                self.violations.append(
                    f"the kill or stop of {key} lost {len(numbers)} requests, more than {MAX_IN_FLIGHT}"
                )

    def _settle(self, sent: Sequence[Sent]) -> None:
        kept: dict[str, list[Sent]] = defaultdict(list)
        for request in sent:
            if not request.billed:
                continue
            for text, times in Counter(request.texts).items():
                if times > 1:
                    self.violations.append(f"request {request.number} has {text!r} {times} times")
                if request.lost:
                    self.causes["lost after the work"] += 1
                else:
                    kept[text].append(request)
        for text, requests in kept.items():
            self._assign_causes(text, requests)

    def _assign_causes(self, text: str, requests: list[Sent]) -> None:
        """Find a cause for every billing but one; kills come last, since their number of requests is limited."""
        if len(requests) == 1:
            self.billed_once += 1
        excess = len(requests) - 1
        for cause, times in (
            ("damaged value", self._damaged[text]),
            ("lost cache", self._lost_caches[text.partition(" ")[0].removesuffix("-child")]),
            ("cache problem in a warning", sum(map(self._had_cache_problem, requests))),
        ):
            used = max(0, min(excess, times))
            self.causes[cause] += used
            excess -= used
        for request in requests:
            if excess > 0 and (killed := self._killed_during(request)):
                self._in_flight_at_kill[killed].add(request.number)
                self.causes["in flight at a kill"] += 1
                excess -= 1
            elif excess > 0 and (stopped := self._stopped_during(request)):
                self._in_flight_at_kill[stopped].add(request.number)
                self.causes["in flight at a stop"] += 1
                excess -= 1
        if excess > 0 and text.startswith(f"{SHARED} query"):
            impatient = min(excess, _close_pairs(requests))
            self.causes["query that did not wait"] += impatient
            excess -= impatient
        if excess > 0:
            listed = [
                f"{r.number} of {r.key}, {r.started:.2f} to {r.ended or -1:.2f} {r.outcome} {r.fault}" for r in requests
            ]
            self.violations.append(f"{text!r} was billed {len(requests)} times: {'; '.join(listed)}")

    def _killed_during(self, request: Sent) -> str:
        """Return the key of the process if it was killed before it can have committed the answer, else ""."""
        for kill in self._kills:
            is_own = request.key == kill["key"] or request.key.startswith(f"{kill['key']}.")
            if is_own and (request.ended is None or request.ended > kill["at"] - COMMIT_SECONDS):
                return request.key
        return ""

    def _stopped_during(self, request: Sent) -> str:
        """Return the key of the process if it was stopped before it can have committed the answer, else ""."""
        for stop in self._stops:
            is_before_end = request.ended is None or request.ended > stop["began"] - COMMIT_SECONDS
            if request.key == stop["key"] and is_before_end and request.started < stop["at"] + STOP_SECONDS:
                return f"{request.key} at {stop['began']:.0f}"
        return ""

    def _had_cache_problem(self, request: Sent) -> bool:
        since = self._problem_since.get(request.key)
        return since is not None and (request.ended is None or request.ended > since - COMMIT_SECONDS)

    def _first_cache_problems(self, events: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Return the time of the first warning about the cache, by process."""
        first: dict[str, float] = {}
        for event in events:
            if event["kind"] == "warning" and any(problem in event["message"] for problem in CACHE_PROBLEMS):
                first.setdefault(event["key"], event["at"])
        return first


def _close_pairs(requests: Sequence[Sent]) -> int:
    """Return how many requests began soon after one of another process."""
    ordered = sorted(requests, key=lambda request: request.started)
    return sum(
        later.started - earlier.started < QUERY_SECONDS and later.key != earlier.key
        for earlier, later in pairwise(ordered)
    )


def unexpected_warnings(events: Sequence[dict[str, Any]], damaged: str) -> list[str]:
    """Return the warnings, except those of the lineage whose cache is deleted, and of others while one is stopped."""
    stops = [event for event in events if event["kind"] == "stop"]
    warnings = [
        event
        for event in events
        if event["kind"] == "warning"
        and not event["key"].startswith(damaged)
        and not (event["key"].startswith(SHARED) and any(s["began"] < event["at"] < s["at"] + 5.0 for s in stops))
    ]
    return [f"{event['key']} logged: {event['message']}" for event in warnings]
