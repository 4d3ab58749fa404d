"""Coordinators by cache folder: one shared object per folder and process, opened on first use."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path

from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.coordination.port import Account, Coordinator

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
            assert self.folder is not None
            local = import_module("embedkit_core.coordination.local.coordinator")
            self._coordinator = local.LocalCoordinator(self.folder / LOCAL_FOLDER)
        return self._coordinator

    def __str__(self) -> str:
        return str(self.folder / LOCAL_FOLDER) if self.folder is not None else type(self._coordinator).__name__


@dataclass(frozen=True, slots=True)
class Coordination:
    """A coordinator, and the account that an embedder's requests are sent on."""

    handle: CoordinatorHandle
    account: Account


_handles: weakref.WeakValueDictionary[Path, CoordinatorHandle] = weakref.WeakValueDictionary()
_lock = ForkLock()


def coordinator_of_folder(cache_folder: Path) -> CoordinatorHandle:
    """Return the coordinator of a cache folder; callers with the same folder share one handle."""
    path = cache_folder.expanduser().resolve()
    with _lock.lock:
        handle = _handles.get(path)
        if handle is None:
            handle = _handles[path] = CoordinatorHandle(path)
        return handle
