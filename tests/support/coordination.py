"""Requests for coordinators, and programs that coordinate with the test in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.port import Begin, Grant, ProviderAccount, Reservation
from embedkit_core.costs.amounts import Amount, BudgetLimit
from embedkit_core.providers.secrets import Secret

ACCOUNT = ProviderAccount("fake", "", Secret("key"))
LIMIT = BudgetLimit(1000, None)

PREAMBLE = """
import contextlib, os, signal, subprocess, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.coordination import begin, request, reservation
from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination import rules
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.port import Bill, End
from embedkit_core.costs.amounts import Amount, BudgetLimit
folder = Path(sys.argv[1])
coordinator = LocalCoordinator(folder)
def tell(*values):
    print(*values, flush=True)
"""


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(*names: str | None, clock: Callable[[], float] = time.monotonic, **settings: Any) -> Begin:
    """Return a request for texts, which were looked up just now; a name of None is a text without a key."""
    keys = [b"" if name is None else name.encode().ljust(32, b".") for name in names]
    since = settings.pop("since", clock())
    return Begin(ACCOUNT, "fake:m", keys, [10] * len(keys), since, **settings)


def begin(coordinator: LocalCoordinator, *names: str | None, **settings: Any) -> Grant:
    """Begin a request for texts."""
    (grant,) = coordinator.exchange([request(*names, **settings)], [])
    return grant


def reservation(*amounts: int, name: str = "ingest", limit: BudgetLimit = LIMIT) -> Reservation:
    """Return a reservation of nano-USD for each text, and of ten tokens."""
    return Reservation(name, limit, {index: Amount(amount, 10) for index, amount in enumerate(amounts)})


def start(folder: Path, body: str, *prefix: str) -> subprocess.Popen[str]:
    """Start a program with a `coordinator` of a folder; `prefix` is a command that runs it."""
    tests = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", PREAMBLE + textwrap.dedent(body), str(folder), tests],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def told(process: subprocess.Popen[str]) -> str:
    """Return the next line of a program."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise AssertionError(process.communicate(timeout=30)[1])
    return line


def go_on(process: subprocess.Popen[str]) -> None:
    """Let a program go on that waits in `input()`."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
