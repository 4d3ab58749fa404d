"""The books: for each text how often its work was billed, against everything that may make it so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from soak.server import Sent
from soak.settings import SLOTS

COMMIT_SECONDS = 3.0  # between an answer and its commit, on a busy machine
TROUBLES = ("cannot be written", "cannot be read", "going on without the cache")  # what the library says of its cache


class Ledger:
    """What the server billed, and what excuses a text that was billed more than once.

    A text may be billed once, and once more for each request that was lost after the work, for each request that was
    in flight when its process was killed, and for each time that its vector was damaged or its cache thrown away.
    `causes` counts the excuses that were used, `violations` names what none is left for.
    """

    def __init__(self, sent: Sequence[Sent], events: Sequence[dict[str, Any]]) -> None:
        self.causes: Counter[str] = Counter()
        self.violations: list[str] = []
        self.once = 0
        self._kills = [event for event in events if event["kind"] == "kill"]
        self._troubled = self._troubles(events)
        self._damaged = Counter(event["text"] for event in events if event["kind"] == "damage")
        self._lost_caches = Counter(event["lineage"] for event in events if event["kind"] == "lost cache")
        self._in_flight_at_kill: dict[str, set[int]] = defaultdict(set)
        self._settle(sent)
        for key, numbers in self._in_flight_at_kill.items():
            if len(numbers) > SLOTS:
                self.violations.append(f"{len(numbers)} requests of {key} are not kept after its kill, over {SLOTS}")

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
            self._judge(text, requests)

    def _judge(self, text: str, requests: list[Sent]) -> None:
        """Find a cause for every time but one; a kill, of which the most is asked, comes last."""
        if len(requests) == 1:
            self.once += 1
        excess = len(requests) - 1
        for cause, times in (
            ("damaged value", self._damaged[text]),
            ("lost cache", self._lost_caches[text.partition(" ")[0].removesuffix("-child")]),
            ("the cache was in trouble, and the library said so", sum(map(self._in_trouble, requests))),
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
            told = [f"{r.number} of {r.key}, {r.started:.2f} to {r.ended or -1:.2f} {r.fault}" for r in requests]
            self.violations.append(f"{text!r} was billed {len(requests)} times: {'; '.join(told)}")

    def _killed_during(self, request: Sent) -> str:
        """Name the process that was killed before it can have kept the answer to this request."""
        for kill in self._kills:
            own = request.key == kill["key"] or request.key.startswith(f"{kill['key']}.")
            if own and (request.ended is None or request.ended > kill["at"] - COMMIT_SECONDS):
                return request.key
        return ""

    def _in_trouble(self, request: Sent) -> bool:
        since = self._troubled.get(request.key)
        return since is not None and (request.ended is None or request.ended > since - COMMIT_SECONDS)

    def _troubles(self, events: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Give when each process that said so first found its cache in trouble."""
        first: dict[str, float] = {}
        for event in events:
            if event["kind"] == "said" and any(trouble in event["said"] for trouble in TROUBLES):
                first.setdefault(event["key"], event["at"])
        return first


def unharmed_in_trouble(events: Sequence[dict[str, Any]], harmed: str) -> list[str]:
    """Name what was said of caches that nobody harmed."""
    said = [event for event in events if event["kind"] == "said" and not event["key"].startswith(harmed)]
    return [f"{event['key']} said: {event['said']}" for event in said]
