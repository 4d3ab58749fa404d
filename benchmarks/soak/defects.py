"""Planted defects that the soak test must find: `python -m benchmarks.soak --defect NAME` has to fail."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

_leaked: list[Any] = []
_planted: set[str] = set()


def _swap_rows() -> None:
    """Swap the first two rows of one call in fifty."""
    from embedkit_core.calls.call import Call

    finish = Call._assemble

    def swapped(call: Call) -> Any:
        rows = finish(call)
        if len(rows) > 1 and random.random() < 0.02:
            if isinstance(rows, np.ndarray):
                rows = rows.copy()
                rows[[0, 1]] = rows[[1, 0]]
            else:
                rows[0], rows[1] = rows[1], rows[0]
        return rows

    Call._assemble = swapped


def _skip_commits() -> None:
    """Skip one commit in twenty."""
    from embedkit_core.cache.disk.cache import DiskCache

    set_many = DiskCache.set_many

    def sometimes(cache: DiskCache, items: Any) -> None:
        if random.random() > 0.05:
            set_many(cache, items)

    DiskCache.set_many = sometimes


def _miss_coalescing() -> None:
    """Send a text again although a request for it is in flight, one time in a hundred."""
    from embedkit_core.engine.scheduler.scheduler import Scheduler

    class Forgetful(dict):
        def get(self, key: bytes, default: Any = None) -> Any:
            return default if random.random() < 0.01 else super().get(key, default)

    init = Scheduler.__init__

    def forgetful(scheduler: Scheduler, **options: Any) -> None:
        init(scheduler, **options)
        scheduler.registry.items = Forgetful()

    Scheduler.__init__ = forgetful


def _leak_memory() -> None:
    """Keep every result."""
    from embedkit_core.calls.call import Call

    finish = Call.finish

    def leaking(call: Call) -> Any:
        result = finish(call)
        _leaked.append(result.vectors.repeat(4, axis=0))
        return result

    Call.finish = leaking


def _lose_wakeups() -> None:
    """Do not wake one caller in fifty."""
    from embedkit_core.calls.call import Call

    submit = Call.submit

    def sometimes(call: Call, wake: Callable[[], None]) -> None:
        submit(call, wake if random.random() > 0.02 else lambda: None)

    Call.submit = sometimes


def _miss_claims() -> None:
    """Overlook what other processes are sending, one time in twenty."""
    from embedkit_core.coordination.local.transaction import LocalTransaction
    from embedkit_core.coordination.rules import Claims

    claims = LocalTransaction.claims

    def sometimes(transaction: LocalTransaction, keys: Any, since: float) -> Claims:
        return claims(transaction, keys, since) if random.random() > 0.05 else Claims({}, ())

    LocalTransaction.claims = sometimes


def _ignore_limits() -> None:
    """Let each request be sent at once."""
    from embedkit_core.coordination.sliding_window import SlidingWindow

    SlidingWindow.wait = lambda *_, **__: 0.0


def _overspend() -> None:
    """Let each named budget have room."""
    from embedkit_core.costs.amounts import BudgetStatus

    BudgetStatus.allows = lambda *_: True


DEFECTS: dict[str, Callable[[], None]] = {
    "rows": _swap_rows,
    "writes": _skip_commits,
    "coalescing": _miss_coalescing,
    "memory": _leak_memory,
    "wakeups": _lose_wakeups,
    "claims": _miss_claims,
    "limits": _ignore_limits,
    "budget": _overspend,
    "leaks": lambda: None,  # `leak` plants it at the end
}


def plant(name: str) -> None:
    """Plant a defect in this process, once: a forked child has it from its parent."""
    if name and name not in _planted:
        _planted.add(name)
        DEFECTS[name]()


def leak(name: str) -> None:
    """Leave a socket and a thread open, if the defect is "leaks"."""
    if name == "leaks":
        _leaked.append(socket.socket())
        threading.Thread(target=threading.Event().wait, name="leaked", daemon=True).start()
