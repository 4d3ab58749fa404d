"""Coordinators by cache folder: one shared object per folder and process, opened on first use."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path

from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.coordination.port import Coordinator, ProviderAccount

LOCAL_FOLDER = "embedkit-coordination-v1"  # inside the user's cache folder


class CoordinatorHandle:
    """A coordinator that is not opened yet. Two handles are equal only if they are the same object.

    Attributes:
        folder: The cache folder whose processes it coordinates; None for an object of the user's.
    """

    def __init__(self, folder: Path | None, coordinator: Coordinator | None = None) -> None:
        self.folder = folder
        self._coordinator = coordinator

    def open(self) -> Coordinator:
        """Return the coordinator. Files are opened on its first use."""
        if self._coordinator is None:
            local = import_module("embedkit_core.coordination.local.coordinator")
            with _lock.lock:
                if self._coordinator is None:
                    assert self.folder is not None
                    self._coordinator = local.LocalCoordinator(self.folder / LOCAL_FOLDER)
        return self._coordinator

    def close(self) -> None:
        """Close the files of a local coordinator; its next use opens them again. An object of the user's stays open."""
        if self.folder is not None and self._coordinator is not None:
            self._coordinator.close()

    def __str__(self) -> str:
        return str(self.folder / LOCAL_FOLDER) if self.folder is not None else type(self._coordinator).__name__


@dataclass(frozen=True, slots=True)
class Coordination:
    """A coordinator, and the account that an embedder's requests are sent on."""

    handle: CoordinatorHandle
    account: ProviderAccount


_handles: weakref.WeakValueDictionary[Path | int, CoordinatorHandle] = weakref.WeakValueDictionary()
_lock = ForkLock()


def coordinator_of_folder(cache_folder: Path) -> CoordinatorHandle:
    """Return the coordinator of a cache folder; callers with the same folder share one handle."""
    path = cache_folder.expanduser().resolve()
    with _lock.lock:
        handle = _handles.get(path)
        if handle is None:
            handle = _handles[path] = CoordinatorHandle(path)
        return handle


def handle_of(coordinator: Coordinator) -> CoordinatorHandle:
    """Return the handle of an object of the user's; callers with the same object share one handle."""
    with _lock.lock:
        handle = _handles.get(id(coordinator))  # the handle keeps the object, so that no other one has its id
        if handle is None:
            handle = _handles[id(coordinator)] = CoordinatorHandle(None, coordinator)
        return handle
