"""Locks that a forked child finds open, whatever thread of its parent held them, and what a fork waits for."""

from __future__ import annotations

# A module that hooks into the fork itself must do so before a fork waits for us: of one that is imported meanwhile the
# hook that follows the fork would run without the one that precedes it, and open a lock that somebody holds.
import concurrent.futures.thread  # noqa: F401
import importlib
import os
import threading
import weakref
from types import ModuleType
from typing import Protocol

_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_others: weakref.WeakSet[ForkAware] = weakref.WeakSet()


class ForkAware(Protocol):
    """What has to begin anew in a forked child."""

    def after_fork_in_child(self) -> None:
        """Let go of what is the parent's."""


def register_after_fork(thing: ForkAware) -> None:
    """Have something told in a forked child, as long as it lives."""
    _others.add(thing)


class ForkLock:
    """Holds a lock, for `with holder.lock`; a new and open one in a forked child.

    The lock itself is the interpreter's own, so that an interrupt cannot fall between taking it and knowing it, and
    may be taken again by the thread that has it, as a signal handler does.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _locks.add(self)


MAX_FORK_WAIT_SECONDS = 10.0  # seconds for which a fork waits for an import of ours that is under way, and for a bar

# Held by our threads while they import, and while they draw a bar. Others' locks stay shut in a child that is forked
# meanwhile, the interpreter's of the module and tqdm's own: the child finds half a module, or waits for ever.
import_lock, progress_lock = ForkLock(), ForkLock()
_held: dict[int, list[threading.RLock]] = {}  # by threads that fork


def import_module(name: str) -> ModuleType:
    """Import a module on first use; a fork in another thread waits until the import is complete."""
    with import_lock.lock:
        return importlib.import_module(name)


def _wait() -> None:
    locks = (import_lock.lock, progress_lock.lock)
    _held[threading.get_ident()] = [lock for lock in locks if lock.acquire(timeout=MAX_FORK_WAIT_SECONDS)]


def _go_on() -> None:
    for lock in _held.pop(threading.get_ident(), ()):
        lock.release()


def _renew() -> None:
    _held.clear()
    for holder in list(_locks):
        holder.lock = threading.RLock()
    for thing in list(_others):
        thing.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_renew)
