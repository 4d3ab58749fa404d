"""From a matrix to lists of Python floats, without stalling anybody.

One `tolist` of 20 000 x 1536 holds the interpreter for about a second, most of it in full collections over the lists
it makes. Slices with the collector paused take about 10 ms each.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import Vectors

SLICE = 64
PATIENCE = 50_000  # new objects between two looks of the collector, in place of 700

_lock = ForkLock()
_pauses: set[object] = set()
_was_on = False
_eases: set[object] = set()
_thresholds = gc.get_threshold()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector; the last of several to end restores what the first one found."""
    global _was_on
    pause = object()
    try:
        with _lock.lock:
            if not _pauses:
                _was_on = gc.isenabled()
            _pauses.add(pause)
            gc.disable()
        yield
    finally:
        try:
            _resume(pause)
        except BaseException:  # an interrupt: without the collector the process would grow for ever
            _resume(pause)
            raise


def _resume(pause: object) -> None:
    with _lock.lock:
        _pauses.discard(pause)
        if not _pauses and _was_on:
            gc.enable()


@contextmanager
def collector_at_ease() -> Iterator[None]:
    """Have the garbage collector look at new objects more rarely, while a call makes lists between waits.

    It walks every number of every new list, each time, which takes as long as making them. Paused for as long as a
    server takes, it would let the garbage of everybody else in the process grow; this bounds it.
    """
    global _thresholds
    ease = object()
    try:
        with _lock.lock:
            if not _eases:
                _thresholds = gc.get_threshold()
            _eases.add(ease)
            if _thresholds[0]:  # at 0 it never collects
                gc.set_threshold(max(PATIENCE, _thresholds[0]), *_thresholds[1:])
        yield
    finally:
        try:
            _end_ease(ease)
        except BaseException:  # an interrupt
            _end_ease(ease)
            raise


def _end_ease(ease: object) -> None:
    with _lock.lock:
        if ease in _eases:
            _eases.discard(ease)
            if not _eases:
                gc.set_threshold(*_thresholds)


def _in_child() -> None:
    """Give a forked child its collector back: who paused it is not there."""
    if _pauses and _was_on:
        gc.enable()
    if _eases:
        gc.set_threshold(*_thresholds)
    _pauses.clear()
    _eases.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def to_lists(vectors: Vectors) -> list[list[float]]:
    """Give float32 (n, dimensions) as n lists of Python floats."""
    rows: list[list[float]] = []
    with collector_paused():
        for start in range(0, len(vectors), SLICE):
            rows += as_floats(vectors[start : start + SLICE]).tolist()
    return rows


def as_floats(vectors: Vectors) -> Vectors:
    """Give the numbers as floats, which Python's own are made of: a host wants them whatever the type."""
    return vectors if vectors.dtype.kind == "f" else vectors.astype(np.float32)


async def ato_lists(vectors: Vectors) -> list[list[float]]:
    """Give the same, letting the caller's loop run between slices."""
    import asyncio

    rows: list[list[float]] = []
    for start in range(0, len(vectors), SLICE):
        with collector_paused():
            rows += as_floats(vectors[start : start + SLICE]).tolist()
        if start + SLICE < len(vectors):
            await asyncio.sleep(0)
    return rows
