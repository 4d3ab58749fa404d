"""From a matrix to lists of Python floats, without stalling anybody.

One `tolist` of 20 000 x 1536 holds the interpreter for about a second, most of it in full collections over the lists
it makes. Slices with the collector paused take about 10 ms each.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

from embedkit_core.forks import ForkLock
from embedkit_core.types import Vectors

SLICE = 64

_lock = ForkLock()
_pauses = 0
_was_on = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector; the last of several to end restores what the first one found."""
    global _pauses, _was_on
    with _lock.lock:
        if _pauses == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock.lock:
            _pauses -= 1
            if _pauses == 0 and _was_on:
                gc.enable()


def to_lists(vectors: Vectors) -> list[list[float]]:
    """Give float32 (n, dimensions) as n lists of Python floats."""
    rows: list[list[float]] = []
    with collector_paused():
        for start in range(0, len(vectors), SLICE):
            rows += vectors[start : start + SLICE].tolist()
    return rows


async def ato_lists(vectors: Vectors) -> list[list[float]]:
    """Give the same, letting the caller's loop run between slices."""
    rows: list[list[float]] = []
    for start in range(0, len(vectors), SLICE):
        with collector_paused():
            rows += vectors[start : start + SLICE].tolist()
        if start + SLICE < len(vectors):
            await asyncio.sleep(0)
    return rows
