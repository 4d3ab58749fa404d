"""Coordinators by cache folder, by Redis database and by object: one handle for each, opened on first use."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.coordination.port import Coordinator, ProviderAccount

if TYPE_CHECKING:
    from embedkit_core.cache.redis.connection import RedisConnection

END_DELAY = 0.02  # with a network; other processes look for it at longer intervals
LOCAL_FOLDER = "embedkit-coordination-v1"  # inside the user's cache folder


class CoordinatorHandle:
    """A coordinator that is not opened yet. Two handles are equal only if they are the same object.

    Args:
        name: The folder or address, without credentials. None for an object of the user's.
        coordinator: The object of the user's.
        make: Returns the coordinator, if it is none of the user's.
        end_delay: Seconds that the end of a request may wait for the begin of another one, to save a trip.
    """

    def __init__(
        self,
        name: str | None,
        coordinator: Coordinator | None = None,
        make: Callable[[], Coordinator] | None = None,
        end_delay: float = 0.0,
    ) -> None:
        self.end_delay = end_delay
        self._name = name
        self._coordinator = coordinator
        self._make = make

    def open(self) -> Coordinator:
        """Return the coordinator. Files and connections are opened on its first use."""
        if self._coordinator is None:
            assert self._make is not None
            made = self._make()  # it imports modules
            with _lock.lock:
                self._coordinator = self._coordinator or made
        return self._coordinator

    def close(self) -> None:
        """Close the files or connections; their next use opens them again. An object of the user's stays open."""
        if self._make is not None and self._coordinator is not None:
            self._coordinator.close()

    def __str__(self) -> str:
        return self._name or type(self._coordinator).__name__


@dataclass(frozen=True, slots=True)
class Coordination:
    """A coordinator, and the account that an embedder's requests are sent on.

    Attributes:
        handle: The coordinator.
        account: The account.
        has_claims: False if the processes share no cache: then none can wait for a text that another one sends.
    """

    handle: CoordinatorHandle
    account: ProviderAccount
    has_claims: bool = True


_handles: weakref.WeakValueDictionary[Path | int, CoordinatorHandle] = weakref.WeakValueDictionary()
_lock = ForkLock()


def coordinator_of_folder(cache_folder: Path) -> CoordinatorHandle:
    """Return the coordinator of a cache folder; callers with the same folder share one handle."""
    path = cache_folder.expanduser().resolve()
    folder = path / LOCAL_FOLDER

    def make() -> Coordinator:
        local: Coordinator = import_module("embedkit_core.coordination.local.coordinator").LocalCoordinator(folder)
        return local

    return _shared_handle(path, lambda: CoordinatorHandle(str(folder), make=make))


def coordinator_of_redis(connection: RedisConnection) -> CoordinatorHandle:
    """Return the coordinator in a Redis database; callers with the same connection share one handle."""

    def make() -> Coordinator:
        coordinators = import_module("embedkit_core.coordination.redis.coordinator")
        coordinator: Coordinator = coordinators.RedisCoordinator(connection)
        return coordinator

    # The handle keeps the connection, or the user's coordinator, so that no other object has its ID.
    return _shared_handle(id(connection), lambda: CoordinatorHandle(connection.name, make=make, end_delay=END_DELAY))


def handle_of(coordinator: Coordinator) -> CoordinatorHandle:
    """Return the handle of an object of the user's; callers with the same object share one handle."""
    return _shared_handle(id(coordinator), lambda: CoordinatorHandle(None, coordinator))


def _shared_handle(key: Path | int, new: Callable[[], CoordinatorHandle]) -> CoordinatorHandle:
    with _lock.lock:
        handle = _handles.get(key)
        if handle is None:
            handle = _handles[key] = new()
        return handle
