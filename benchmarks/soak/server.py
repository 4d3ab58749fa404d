"""The server of the soak test, in a process of its own: OpenAI's replies, and every fault that a request can have."""

from __future__ import annotations

import pickle
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.soak.settings import DIMENSIONS, TIMEOUT_SECONDS
from tests.support.openai_replies import Fault, Json
from tests.support.openai_server import OpenAIServer

STORM_INTERVAL, STORM_SECONDS = 20.0, 5.0
FAULT_RATE, STORM_FAULT_RATE = 0.06, 0.3  # share of requests with a fault
LOST = frozenset({"cut after the work", "wrong count", "not a number", "refused after the work", "too slow"})
RARE = {"too slow", "no answer"}  # each takes seconds


class Sent(NamedTuple):
    """One request as the server saw it; times are `time.monotonic()`, `ended` is None if the server stopped first."""

    number: int
    key: str
    texts: tuple[str, ...]
    started: float
    ended: float | None
    outcome: str
    billed: bool
    fault: str

    @property
    def lost(self) -> bool:
        """Return True if the client got no valid answer for work that was billed."""
        slow = self.ended is not None and self.ended - self.started > 0.8 * TIMEOUT_SECONDS
        return self.fault in LOST or self.outcome == "cut" or slow


def _too_few(reply: Json) -> None:
    reply["data"].pop()


def _not_a_number(reply: Json) -> None:
    reply["data"][-1]["embedding"][0] = float("nan")


def _shuffled(reply: Json) -> None:
    reply["data"].reverse()


def faults(rng: random.Random) -> dict[str, Fault]:
    """Return all faults by name."""
    return {
        "429": Fault.rate_limited(),
        "429, Retry-After": Fault.rate_limited(retry_after=rng.choice([0.1, 0.5, 1.0])),
        "500": Fault.server_error(500),
        "503": Fault.server_error(503),
        "cut before the work": Fault(cut=True),
        "cut after the work": Fault(cut_after_work=True),
        "refused after the work": Fault(status=500, billed=True),
        "slow": Fault(delay=rng.uniform(0.1, 1.0)),
        "too slow": Fault(delay=1.3 * TIMEOUT_SECONDS),
        "no answer": Fault(hang=True),
        "wrong count": Fault(transform=_too_few),
        "not a number": Fault(transform=_not_a_number),
        "shuffled": Fault(transform=_shuffled),
    }


def main(seed: int, record: Path) -> None:
    """Serve until the standard input ends, then write all requests to a file."""
    rng = random.Random(seed)
    fault_names: dict[int, str] = {}
    started = time.monotonic()

    def choose_fault(_: tuple[str, ...], number: int) -> Fault | None:
        is_storm = (time.monotonic() - started) % STORM_INTERVAL > STORM_INTERVAL - STORM_SECONDS
        if rng.random() > (STORM_FAULT_RATE if is_storm else FAULT_RATE):
            return None
        choices = faults(rng)
        name = rng.choices(list(choices), [0.15 if name in RARE else 1.0 for name in choices])[0]
        fault_names[number] = name
        return choices[name]

    with OpenAIServer(dimensions=DIMENSIONS, latency=0.02, api_key=None) as server:
        server.fault_for(choose_fault)
        print(server.base_url, flush=True)
        sys.stdin.read()
        sent = [
            Sent(
                exchange.number,
                exchange.headers.get("authorization", "").removeprefix("Bearer "),
                exchange.texts,
                exchange.started,
                exchange.ended,
                exchange.outcome,
                exchange.billed,
                fault_names.get(exchange.number, ""),
            )
            for exchange in server.requests
        ]
    record.write_bytes(pickle.dumps(sent))
