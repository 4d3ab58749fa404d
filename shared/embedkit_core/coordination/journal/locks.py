"""Locks on files of a folder, which end with the process that holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from embedkit_core.common.fork_safety import register_after_fork
from embedkit_core.coordination.local.owners import lock_descriptor


class FileLock:
    """A lock that one thread of one process can hold. It ends with the process, however that ends.

    The file is empty and is not deleted, so that no process locks a file that another one has just removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        register_after_fork(self)

    def acquire(self) -> bool:
        """Lock without waiting. Return False if another thread or process holds the lock."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            lock_descriptor(descriptor)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Unlock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def after_fork_in_child(self) -> None:
        """Leave the lock to the parent."""
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
