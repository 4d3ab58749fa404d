"""Conversion of a matrix to lists of Python floats, with few garbage collections.

The garbage collector visits every number of every new list. With its default threshold, `tolist` of 20 000 x 1536
numbers takes about a second, most of it in collections.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import Vectors

ROWS_PER_SLICE = 64  # rows converted at a time, about 10 ms; other threads run in between
RELAXED_THRESHOLD = 50_000  # new objects between two collections; Python's default is 700

_lock = ForkLock()
_users: set[object] = set()
_default_thresholds = gc.get_threshold()


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Raise the threshold of the garbage collector; the last of several concurrent users restores it.

    The collector stays on: the rest of the process creates garbage too while a call waits for a server.
    """
    global _default_thresholds
    user = object()
    try:
        with _lock.lock:
            if not _users:
                _default_thresholds = gc.get_threshold()
            _users.add(user)
            if _default_thresholds[0]:  # 0 means the collector is off
                gc.set_threshold(max(RELAXED_THRESHOLD, _default_thresholds[0]), *_default_thresholds[1:])
        yield
    finally:
        try:
            _restore(user)
        except BaseException:  # a KeyboardInterrupt
            _restore(user)
            raise


def _restore(user: object) -> None:
    with _lock.lock:
        if user in _users:
            _users.discard(user)
            if not _users:
                gc.set_threshold(*_default_thresholds)


def _restore_in_child() -> None:
    """Restore the threshold in a forked child, which has none of the parent's other threads."""
    if _users:
        gc.set_threshold(*_default_thresholds)
    _users.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


def to_lists(vectors: Vectors) -> list[list[float]]:
    """Return the rows of a matrix (n, dimensions), of any dtype, as n lists of Python floats."""
    rows: list[list[float]] = []
    with relaxed_gc():
        for start in range(0, len(vectors), ROWS_PER_SLICE):
            rows += as_floats(vectors[start : start + ROWS_PER_SLICE]).tolist()
    return rows


def as_floats(vectors: Vectors) -> Vectors:
    """Return the vectors in a float dtype, so that `tolist` returns Python floats."""
    return vectors if vectors.dtype.kind == "f" else vectors.astype(np.float32)
