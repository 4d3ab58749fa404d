"""Lock files: each process holds a lock on its own for life, so others see at once that it is gone."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

from embedkit_core.cache.disk.folder import Identity, identity

FOLDER = "owners"

if sys.platform == "win32":
    import msvcrt

    def lock_descriptor(descriptor: int) -> None:
        """Lock an open file without waiting. Raises BlockingIOError if another process holds the lock."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(error.errno, error.strerror) from error

else:
    import fcntl

    def lock_descriptor(descriptor: int) -> None:
        """Lock an open file without waiting. Raises BlockingIOError if another process holds the lock."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class OwnerLock:
    """The lock file of this process, locked until it is released or the process ends.

    Attributes:
        name: The name of the owner.
    """

    def __init__(self, folder: Path) -> None:
        """Create a lock file in a coordination folder. Raises OSError."""
        (folder / FOLDER).mkdir(mode=0o700, exist_ok=True)
        self._process = os.getpid()
        while True:
            self.name = secrets.token_hex(8)
            self._path = lock_path(folder, self.name)
            # Not inherited by programs that this process starts. A forked child closes it.
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                lock_descriptor(self._descriptor)
                status = os.fstat(self._descriptor)
                self._file = Identity(status.st_dev, status.st_ino)
            except BaseException as error:
                self.release()
                if not isinstance(error, BlockingIOError):
                    raise
            else:
                if self.is_held:  # else another process has just taken it for one of a dead owner
                    return
                self.release()

    @property
    def is_held(self) -> bool:
        """True if this process holds the lock, and others can see its file."""
        if self._process != os.getpid():
            return False
        if sys.platform == "win32":  # an open file is not deleted there, and lstat may name another device than fstat
            return self._path.exists()
        return identity(self._path) == self._file

    def release(self) -> None:
        """Release the lock and delete the file."""
        self.close()
        with suppress(OSError):
            self._path.unlink()

    def close(self) -> None:
        """Close the descriptor; in a forked child this leaves the parent's lock as it is."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def lock_path(folder: Path, name: str) -> Path:
    """Return the path of an owner's lock file."""
    return folder / FOLDER / f"{name}.lock"


def remove_if_dead(folder: Path, name: str) -> bool:
    """Delete the lock file of an owner if no process holds its lock. Return True if none does."""
    path = lock_path(folder, name)
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return True
    except OSError:  # such as too many open files
        return False
    try:
        lock_descriptor(descriptor)
        if os.name == "posix":  # while it is locked, so that a process which creates it just now sees that it is gone
            path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    if os.name != "posix":
        with suppress(OSError):
            path.unlink()
    return True


def names(folder: Path) -> list[str]:
    """Return the names of all owners with a lock file."""
    try:
        return [path.stem for path in (folder / FOLDER).glob("*.lock")]
    except OSError:
        return []
