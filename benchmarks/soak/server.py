"""The provider of the soak, in a process of its own: OpenAI's answers, and everything that goes wrong on the way."""

from __future__ import annotations

import pickle
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

from support.openai_replies import Fault, Json
from support.openai_server import OpenAIServer

from soak.settings import DIMENSIONS, TIMEOUT

STORM_EVERY, STORM_SECONDS = 20.0, 5.0
CALM, STORM = 0.06, 0.3  # how many requests go wrong
LOST = frozenset({"cut after the work", "wrong count", "not a number", "refused after the work", "too slow"})


class Sent(NamedTuple):
    """One request as the server saw it; times are time.monotonic(), `ended` None where the server stopped first."""

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
        """Whether its work was done, billed, and could not reach the client, or not in a form it may believe."""
        slow = self.ended is not None and self.ended - self.started > 0.8 * TIMEOUT
        return self.fault in LOST or self.outcome == "cut" or slow


def _too_few(reply: Json) -> None:
    reply["data"].pop()


def _not_a_number(reply: Json) -> None:
    reply["data"][-1]["embedding"][0] = float("nan")


def _shuffled(reply: Json) -> None:
    reply["data"].reverse()


def faults(rng: random.Random) -> dict[str, Fault]:
    """Everything that may go wrong with a request."""
    return {
        "429": Fault.rate_limited(),
        "429, Retry-After": Fault.rate_limited(retry_after=rng.choice([0.1, 0.5, 1.0])),
        "500": Fault.server_error(500),
        "503": Fault.server_error(503),
        "cut before the work": Fault(cut=True),
        "cut after the work": Fault(cut_after_work=True),
        "refused after the work": Fault(status=500, billed=True),
        "slow": Fault(delay=rng.uniform(0.1, 1.0)),
        "too slow": Fault(delay=1.3 * TIMEOUT),
        "no answer": Fault(hang=True),
        "wrong count": Fault(transform=_too_few),
        "not a number": Fault(transform=_not_a_number),
        "shuffled": Fault(transform=_shuffled),
    }


RARE = {"too slow", "no answer"}  # they take their time


def main(seed: int, record: Path) -> None:
    """Serve until the standard input ends, then write what was seen."""
    rng = random.Random(seed)
    kinds: dict[int, str] = {}
    began = time.monotonic()

    def hook(_: tuple[str, ...], number: int) -> Fault | None:
        storm = (time.monotonic() - began) % STORM_EVERY > STORM_EVERY - STORM_SECONDS
        if rng.random() > (STORM if storm else CALM):
            return None
        offered = faults(rng)
        kind = rng.choices(list(offered), [0.15 if kind in RARE else 1.0 for kind in offered])[0]
        kinds[number] = kind
        return offered[kind]

    with OpenAIServer(dimensions=DIMENSIONS, latency=0.02, api_key=None) as server:
        server.fault_for(hook)
        print(server.base_url, flush=True)
        sys.stdin.read()
        seen = [
            Sent(
                exchange.number,
                exchange.headers.get("authorization", "").removeprefix("Bearer "),
                exchange.texts,
                exchange.started,
                exchange.ended,
                exchange.outcome,
                exchange.billed,
                kinds.get(exchange.number, ""),
            )
            for exchange in server.requests
        ]
    record.write_bytes(pickle.dumps(seen))
