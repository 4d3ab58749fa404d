"""Defects to be planted on purpose, which the soak must find: `soak.py --defect NAME` has to fail."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

_kept: list[Any] = []
_planted: set[str] = set()


def _rows() -> None:
    """One call in fifty gets its first two rows the other way round."""
    from embedkit_core.calls.call import Call

    assemble = Call._assemble

    def swapped(call: Call) -> np.ndarray:
        rows = assemble(call)
        if len(rows) > 1 and random.random() < 0.02:
            rows[[0, 1]] = rows[[1, 0]]
        return rows

    Call._assemble = swapped


def _writes() -> None:
    """One commit in twenty is forgotten."""
    from embedkit_core.cache.disk.cache import DiskCache

    set_many = DiskCache.set_many

    def forgetful(cache: DiskCache, items: Any) -> None:
        if random.random() > 0.05:
            set_many(cache, items)

    DiskCache.set_many = forgetful


def _sharing() -> None:
    """A text that is under way is sent once more for whoever comes meanwhile."""
    from embedkit_core.engine.scheduler.scheduler import Scheduler

    class Forgetful(dict):
        def get(self, key: bytes, default: Any = None) -> Any:
            return default if random.random() < 0.01 else super().get(key, default)

    begin = Scheduler.__init__

    def forgetful(scheduler: Scheduler, **options: Any) -> None:
        begin(scheduler, **options)
        scheduler.registry.items = Forgetful()

    Scheduler.__init__ = forgetful


def _memory() -> None:
    """Every result is kept for ever."""
    from embedkit_core.calls.call import Call

    finish = Call.finish

    def hoarding(call: Call) -> Any:
        result = finish(call)
        _kept.append(result.vectors.repeat(4, axis=0))
        return result

    Call.finish = hoarding


def _wakes() -> None:
    """One caller in fifty is not woken."""
    from embedkit_core.calls.call import Call

    submit = Call.submit

    def asleep(call: Call, wake: Callable[[], None]) -> None:
        submit(call, wake if random.random() > 0.02 else lambda: None)

    Call.submit = asleep


def _closing() -> None:
    """A socket and a thread are left."""


DEFECTS: dict[str, Callable[[], None]] = {
    "rows": _rows,
    "writes": _writes,
    "sharing": _sharing,
    "memory": _memory,
    "wakes": _wakes,
    "closing": _closing,
}


def plant(name: str) -> None:
    """Plant a defect in this process, once."""
    if name and name not in _planted:  # a forked child has it from its parent
        _planted.add(name)
        DEFECTS[name]()


def before_the_look(name: str) -> None:
    """Leave something behind, where that is the defect."""
    if name == "closing":
        _kept.append(socket.socket())
        threading.Thread(target=threading.Event().wait, name="a thread of nobody", daemon=True).start()
