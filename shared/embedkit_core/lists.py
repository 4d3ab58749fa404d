"""From a matrix to lists of Python floats, without stalling anybody.

One `tolist` of 20 000 x 1536 holds the interpreter for about a second, most of it in full collections over the lists
it makes. Slices with the collector paused take about 10 ms each.
"""

from __future__ import annotations

import gc
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from embedkit_core.forks import ForkLock
from embedkit_core.form import FLOATS, Form
from embedkit_core.types import Vectors

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


class ListRows:
    """The result as lists of Python floats. There is no matrix: a reply's rows are kept until lists are made of them.

    The engine puts rows, as into `Rows`, and calls `landed`; the caller makes the lists, which takes longer than all
    the rest, while the engine waits for the server.
    """

    def __init__(self, n: int, positions: npt.NDArray[np.intp], form: Form = FLOATS) -> None:
        self.n = n
        self._form = form
        self.positions = positions
        self.put_count = 0
        self.landed: Callable[[], None] | None = None
        self._lists: list[list[float]] = [[]] * n
        self.width: int | None = None
        self._waiting: deque[tuple[list[int], Vectors]] = deque()

    def put(self, wants: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Make lists of single rows, of the form asked for."""
        self.width = len(vectors[0])
        self.put_count += len(wants)
        positions: list[int] = self.positions[wants].tolist()
        for position, vector in zip(positions, vectors, strict=True):
            self._lists[position] = as_floats(vector).tolist()

    def put_wants(self, wants: Sequence[int], vectors: Vectors) -> None:
        """Take the vectors of these wants, for the caller to make lists of; called on the engine's side."""
        self.width = vectors.shape[1]
        self.put_count += len(wants)
        self._waiting.append((self.positions[wants].tolist(), vectors))
        if self.landed is not None:
            self.landed()

    def slices(self) -> Iterator[None]:
        """Make lists of what has landed, a slice at each step."""
        while self._waiting:
            positions, vectors = self._waiting.popleft()
            for start in range(0, len(positions), SLICE):
                made = as_floats(vectors[start : start + SLICE]).tolist()
                for position, row in zip(positions[start : start + SLICE], made, strict=True):
                    self._lists[position] = row
                yield

    def finished(self, origin: npt.NDArray[np.intp] | None, failed: Sequence[int], width: int) -> list[list[float]]:
        """Give the lists, NaN where rows `failed` (0 where the type has none); `origin` says what a row repeats."""
        for _ in self.slices():
            pass
        for position in failed:
            self._lists[position] = [math.nan if self._form.element.kind == "f" else 0.0] * (self.width or width)
        if origin is not None:
            self._copy(origin)
        return self._lists

    def _copy(self, origin: npt.NDArray[np.intp]) -> None:
        for position in np.flatnonzero(origin != np.arange(self.n)).tolist():
            self._lists[position] = self._lists[origin[position]].copy()


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
