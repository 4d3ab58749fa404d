"""Locks that a forked child finds open, whatever thread of its parent held them."""

from __future__ import annotations

import os
import threading
import weakref

_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()


class ForkLock:
    """Holds a lock, for `with holder.lock`; a new and open one in a forked child.

    The lock itself is the interpreter's own, so that an interrupt cannot fall between taking it and knowing it, and
    may be taken again by the thread that has it, as a signal handler does.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _locks.add(self)


def _renew() -> None:
    for holder in list(_locks):
        holder.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
