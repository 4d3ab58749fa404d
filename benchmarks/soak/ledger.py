"""For each text, compare how often it was billed with the recorded causes of repeated billing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.soak.server import Sent
from benchmarks.soak.settings import MAX_IN_FLIGHT

COMMIT_SECONDS = 3.0  # between an answer and its commit, on a busy machine
CACHE_PROBLEMS = ("cannot be written", "cannot be read", "is off, so texts")  # in warnings of the library


class Ledger:
    """Assigns a cause to every repeated billing of a text.

    A text is billed once, and once more for each request that was lost after the work was done, for each request that
    was in flight when its process was killed, and each time that its cached vector was damaged or its cache was lost.

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
        self._problem_since = self._first_cache_problems(events)
        self._damaged = Counter(event["text"] for event in events if event["kind"] == "damaged value")
        self._lost_caches = Counter(event["lineage"] for event in events if event["kind"] == "lost cache")
        self._in_flight_at_kill: dict[str, set[int]] = defaultdict(set)
        self._settle(sent)
        for key, numbers in self._in_flight_at_kill.items():
            if len(numbers) > MAX_IN_FLIGHT:
                self.violations.append(f"the kill of {key} lost {len(numbers)} requests, more than {MAX_IN_FLIGHT}")

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
        if excess > 0:
            listed = [f"{r.number} of {r.key}, {r.started:.2f} to {r.ended or -1:.2f} {r.fault}" for r in requests]
            self.violations.append(f"{text!r} was billed {len(requests)} times: {'; '.join(listed)}")

    def _killed_during(self, request: Sent) -> str:
        """Return the key of the process if it was killed before it can have committed the answer, else ""."""
        for kill in self._kills:
            is_own = request.key == kill["key"] or request.key.startswith(f"{kill['key']}.")
            if is_own and (request.ended is None or request.ended > kill["at"] - COMMIT_SECONDS):
                return request.key
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


def unexpected_warnings(events: Sequence[dict[str, Any]], damaged: str) -> list[str]:
    """Return the warnings of all lineages except the one whose cache is deleted."""
    warnings = [event for event in events if event["kind"] == "warning" and not event["key"].startswith(damaged)]
    return [f"{event['key']} logged: {event['message']}" for event in warnings]
