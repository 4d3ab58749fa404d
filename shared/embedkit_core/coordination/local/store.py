"""The file of a coordinator: opened with the checks of a cache folder, and written in short transactions."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedkit_core.cache.disk import folder as folders
from embedkit_core.cache.disk.connections import close_all, connect, is_busy, is_damage, is_open, set_busy_timeout
from embedkit_core.common.errors import CacheError, CoordinationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.coordination.local import owners, schema

BUSY_SECONDS = 2.0  # that a transaction waits for those of other processes, which take less than a millisecond
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.005  # between two attempts


class Store:
    """An open coordination file. Use it only inside `FORK_BARRIER.entered()`.

    Attributes:
        folder: The coordination folder.
        connection: The connection.
        salt: The salt of the accounts' digests.
    """

    def __init__(self, folder: Path, file: folders.Identity, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.connection = connection
        self._path = folder / schema.DATABASE
        self._file = file
        self._is_durable = False
        self.salt: bytes = connection.execute("SELECT value FROM Meta WHERE name = 'salt'").fetchone()[0]

    @property
    def is_current(self) -> bool:
        """True if the connection is open and its file is still the one at its path."""
        return is_open(self.connection) and folders.identity(self._path) == self._file

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[None]:
        """Lock the database inside the `with` block, and commit. After an error, close the store to roll back.

        Args:
            durable: True if the commit must survive a power cut.
        """
        if durable != self._is_durable:
            self.connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        self.execute("BEGIN IMMEDIATE")
        yield
        self.connection.execute("COMMIT")

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement outside of a transaction. Wait up to `BUSY_SECONDS` for other processes."""
        # SQLite would wait a millisecond, then ever longer: too long for locks that are held for 0.2 ms.
        pause, until = _FIRST_PAUSE, 0.0
        while True:
            try:
                return self.connection.execute(statement, parameters)
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                until = until or time.monotonic() + BUSY_SECONDS
                if time.monotonic() > until:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, _LONGEST_PAUSE)


def open_store(folder: Path, *, create: bool) -> Store | None:
    """Open the coordination file of a folder. None if there is none and `create` is False.

    Raises:
        CoordinationError, CacheError: The folder or the file must not be used.
        OSError, sqlite3.Error: The file cannot be created or opened.
    """
    network = folders.network_of(folder)
    if network is not None:
        raise CacheError(f"SQLite is unsafe on a network file system ({network})")
    while True:
        seen = folders.identity(folder)
        if seen is not None:
            folders.harden(folder)
        if folders.identity(folder / schema.DATABASE) is not None:
            break
        if not create:
            return None
        if seen is not None:
            _remove(folder, seen)
        creation = import_module("embedkit_core.cache.disk.create")
        creation.create_folder(folder, schema.DATABASE, schema.fill)
    reason = folders.foreign_file(folder, schema.DATABASE)
    if reason is not None:
        raise CacheError(reason)
    return _open(folder)


def _open(folder: Path) -> Store:
    path = folder / schema.DATABASE
    file = folders.identity(path)
    connection = connect(path, "rw")
    try:
        schema.check(connection, path)
        if file is None or folders.identity(path) != file:
            raise CacheError("replaced by another file")
        store = Store(folder, file, connection)
        set_busy_timeout(connection, 0)  # of statements inside a transaction
        connection.text_factory = str
        return store
    except BaseException:
        close_all([connection])
        raise


def _remove(folder: Path, seen: folders.Identity) -> None:
    """Remove a folder whose database was deleted: SQLite would read its WAL into a new one."""
    own = {owners.FOLDER, f"{schema.DATABASE}-wal", f"{schema.DATABASE}-shm"}
    if {path.name for path in folder.iterdir()} - own:
        raise CacheError(f"{schema.DATABASE} is missing")
    renamed = folders.quarantine(folder, seen)
    if renamed is not None:
        shutil.rmtree(renamed, ignore_errors=True)


def error_for(error: Exception, folder: Path) -> CoordinationError:
    """Return the error that states why a coordination folder cannot be used."""
    file = folder / schema.DATABASE
    if is_damage(error) or not isinstance(error, (OSError, sqlite3.Error, CacheError)):
        return CoordinationError(
            f"Coordination file {file} is damaged ({type(error).__name__}). Stop the processes that use it "
            f"and delete {folder}. This also deletes the named budgets."
        )
    if is_busy(error):
        return CoordinationError(
            f"Coordination file {file} is locked by another process. If a process is stopped, continue it or kill it."
        )
    reason = str(error) if isinstance(error, (CacheError, sqlite3.Error)) else type(error).__name__
    return CoordinationError(
        f"Coordination folder {folder} cannot be used ({reason}). Use a cache folder that is writable and on a local "
        "disk, or coordination=False."
    )
