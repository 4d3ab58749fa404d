"""Locks that are open in a forked child, and locks that a fork waits for."""

from __future__ import annotations

# concurrent.futures.thread registers fork hooks, so it is imported before ours. If another thread imported it while a
# fork waits for our locks, its hook after the fork would run without the one before, and release a lock that is held.
import concurrent.futures.thread  # noqa: F401
import importlib
import os
import threading
import weakref
from types import ModuleType
from typing import Protocol

_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_fork_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


class ForkAware(Protocol):
    """An object that resets itself in a forked child."""

    def after_fork_in_child(self) -> None:
        """Drop the state that belongs to the parent."""


def register_after_fork(thing: ForkAware) -> None:
    """Call `thing.after_fork_in_child()` in each forked child, as long as the object lives."""
    _fork_aware.add(thing)


class ForkLock:
    """Holder of a lock, for `with holder.lock`; a forked child gets a new, open lock.

    The lock is a plain RLock: an interrupt cannot separate acquire from release, and a signal handler may acquire it
    again on the same thread.
    """

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        _locks.add(self)


def holds_lock() -> bool:
    """Return True if this thread holds a lock of the library.

    That is so in a signal handler or a finalizer that has interrupted the library. Other threads may wait for the lock,
    so it must not wait for them.
    """
    return any(holder.lock._is_owned() for holder in list(_locks))  # type: ignore[attr-defined]


MAX_FORK_WAIT_SECONDS = 10.0  # how long a fork waits for each of the two locks below

# Held while the library imports modules or draws a progress bar. The module locks of the interpreter and the lock of
# tqdm stay locked in a child that is forked meanwhile: it would find a partial module, or wait forever.
import_lock, progress_lock = ForkLock(), ForkLock()
_held: dict[int, list[threading.RLock]] = {}  # by ID of the forking thread


def import_module(name: str, *attributes: str) -> ModuleType:
    """Import a module on first use; a fork in another thread waits until the import is complete.

    Args:
        name: The module.
        attributes: Attributes to read before the lock is released: a lazy module imports them on first access.
    """
    with import_lock.lock:
        module = importlib.import_module(name)
        for attribute in attributes:
            getattr(module, attribute)
        return module


def _before_fork() -> None:
    locks = (import_lock.lock, progress_lock.lock)
    _held[threading.get_ident()] = [lock for lock in locks if lock.acquire(timeout=MAX_FORK_WAIT_SECONDS)]


def _after_fork_in_parent() -> None:
    for lock in _held.pop(threading.get_ident(), ()):
        lock.release()


def _after_fork_in_child() -> None:
    _held.clear()
    for holder in list(_locks):
        holder.lock = threading.RLock()
    for thing in list(_fork_aware):
        thing.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
