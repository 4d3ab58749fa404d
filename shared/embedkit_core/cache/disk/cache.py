"""Cache in a folder: a SQLite database, opened only if it has exactly the schema that this library creates."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from embedkit_core.cache.codec import decode_all, encode_all
from embedkit_core.cache.disk import folder as folders
from embedkit_core.cache.disk.connections import (
    FORK_BARRIER,
    Mode,
    again_after_fork,
    close_all,
    connect,
    is_busy,
    is_damage,
    result_code,
)
from embedkit_core.cache.disk.pool import BULK_WAIT_SECONDS, KEYS_PER_SELECT, FoundRow, NewRow, Pool
from embedkit_core.cache.disk.schema import has_old_triggers, schema_mismatch
from embedkit_core.cache.stats import Stats
from embedkit_core.common.errors import CacheError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.types import Entry

READ_RETRY_SECONDS = 10.0  # pause after a read that another process has blocked
WRITE_RETRY_SECONDS = 60.0  # pause after a write that failed otherwise: a full disk may get space
WRITE_WAIT_SECONDS = 5.0  # as BULK_WAIT_SECONDS, for up to MAX_QUERY_ROWS
MAX_QUERY_ROWS = 16
LOCKED_WAIT_SECONDS = 1.0  # of writes after one that another process has blocked, until one succeeds
_MAX_QUARANTINED = 3  # per process: a faulty disk must not be filled with damaged databases

_CANNOT_WRITE = frozenset(
    {
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
    }
)

T = TypeVar("T")
logger = logging.getLogger("embedkit_core.cache")


class DiskCache:
    """A cache in `folder`/embedkit-v1, for any number of threads and processes on one machine, without eviction.

    The folder is created at the first write. A failed read is a cache miss. A failed write is counted in `stats` and
    logged once; neither raises. Committed vectors survive a killed process, but possibly not a power cut. A damaged or
    foreign database is quarantined and replaced. The cache is off on a network file system, or if the folder is a
    link or belongs to another user.

    Attributes:
        stats: Failures in this process.
    """

    def __init__(self, folder: Path | str) -> None:
        self.stats = Stats()
        self._folder = Path(folder).expanduser().resolve() / folders.OWN_FOLDER
        self._database = self._folder / folders.DATABASE
        self._pool: Pool | None = None
        self._off = False
        self._next_read_at = 0.0
        self._next_write_at = 0.0
        self._is_locked = False
        self._logged_failures: set[str] = set()
        self._pending_logs: deque[str] = deque()
        # Lock order: FORK_BARRIER, _write_lock, _open_lock. No foreign code (such as a log handler) runs under them.
        self._write_lock = ForkLock()
        self._open_lock = ForkLock()

    @property
    def folder(self) -> Path:
        """The absolute path of the folder that the cache was opened with."""
        return self._folder.parent

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are in the cache, by key."""
        found: dict[bytes, Entry] = {}
        for block in self.get_blocks(keys):
            found |= block
        return found

    def get_blocks(self, keys: Sequence[bytes]) -> Iterator[dict[bytes, Entry]]:
        """Yield the entries that are in the cache, in blocks, so that a large read needs little memory."""
        for start in range(0, len(keys), KEYS_PER_SELECT):
            found = self._get_block(keys[start : start + KEYS_PER_SELECT])
            if found is None:
                return
            yield found

    def _get_block(self, keys: Sequence[bytes]) -> dict[bytes, Entry] | None:
        """Return one block. None if the read fails: further blocks could each wait until a timeout."""
        if self._is_paused:
            return None
        rows: list[FoundRow] | None = None
        pool = None
        with FORK_BARRIER.entered():
            try:
                pool = self._pool or self._open(create=False)
                if pool is not None:
                    rows = pool.read(keys)
                    if len(rows) < len(keys) and self._is_replaced(pool):
                        pool = self._open(create=False)
                        rows = pool.read(keys) if pool is not None else rows
            except (OSError, sqlite3.Error, CacheError) as error:
                self._read_failed(pool, error)
        self._flush_log()
        if rows is None:
            return None
        found = decode_all(rows)
        if len(found) < len(rows):
            with self._open_lock.lock:
                self.stats.damaged += len(rows) - len(found)
        return found

    def maintain(self, operation: Callable[[sqlite3.Connection], T], *, writes: bool = False) -> T | None:
        """Return the result of an operation on the database.

        Returns:
            None if there is no database, or if it was damaged and is quarantined.

        Raises:
            CacheError: The cache is off, or the database cannot be read, or not written if `writes`.
        """
        result, failure, pool = None, None, None
        with FORK_BARRIER.entered():
            try:
                pool = self._pool or self._open(create=False)
                if pool is not None and pool.mode != "rw" and writes:
                    raise CacheError("read-only")
                if pool is not None:
                    with pool.connection() as connection:
                        result = operation(connection)
            except (OSError, sqlite3.Error, CacheError) as error:
                if pool is None or not is_damage(error) or not self._replace(pool):
                    failure = _reason(error)
        self._flush_log()
        if self._off:
            raise CacheError(f"Cache {self._folder} cannot be used. The log has the reason.")
        if failure is not None:
            raise CacheError(f"Cache {self._folder} cannot be {'changed' if writes else 'read'} ({failure}).")
        return result

    def sync(self) -> None:
        """Write all commits to the disk: by default they survive a killed process, but not a power cut.

        Raises:
            CacheError: The database cannot be written.
        """
        # A checkpoint writes the WAL to the disk before it copies pages to the database.
        self.maintain(lambda connection: connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall(), writes=True)

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Commit entries in one transaction; existing values are replaced.

        Raises:
            ValueError: A vector is not a row of finite numbers. Nothing was written.
        """
        now = time.time()
        encoded = zip(encode_all(items), items, strict=True)
        rows = [NewRow(key, value, entry.space, now) for (key, value), (_, entry) in encoded]
        if not rows:
            return
        with FORK_BARRIER.entered(), self._write_lock.lock:
            if not self._write(rows):
                self.stats.write_failures += len(rows)
        self._flush_log()

    def close(self) -> None:
        """Close the connections of this process until the next call. The last process to close merges the WAL."""
        with FORK_BARRIER.entered(), self._open_lock.lock:
            self._drop()
            self._off = self._is_locked = False
            self._next_read_at = self._next_write_at = 0.0

    @property
    def is_off(self) -> bool:
        """True if the cache neither reads nor writes; the log has the reason."""
        return self._off

    @property
    def _is_paused(self) -> bool:
        return self._next_read_at > 0.0 and time.monotonic() < self._next_read_at

    def __repr__(self) -> str:
        return f"DiskCache({str(self._folder.parent)!r})"

    def _write(self, rows: Sequence[NewRow]) -> bool:
        if time.monotonic() < self._next_write_at:
            return False
        patience = WRITE_WAIT_SECONDS if len(rows) <= MAX_QUERY_ROWS else BULK_WAIT_SECONDS
        if self._is_locked:
            patience = LOCKED_WAIT_SECONDS
        for is_retry in (False, True):
            pool = None
            try:
                pool = self._for_writing()
                if pool is None:
                    return False
                pool.write(rows, patience)
            except (OSError, sqlite3.Error, CacheError) as error:
                if not is_retry and pool is not None and is_damage(error) and self._replace(pool):
                    continue
                if is_busy(error):
                    self._is_locked = True
                else:
                    self._next_write_at = time.monotonic() + WRITE_RETRY_SECONDS
                self._log_once("written", error)
                return False
            self._is_locked = False
            self._next_read_at = 0.0
            return True
        return False

    def _is_replaced(self, pool: Pool) -> bool:
        """Return True if the database was moved or deleted, such as by `cache clear`. Then the pool is closed."""
        if folders.identity(self._database) == pool.file:
            return False
        with self._open_lock.lock:
            self._drop(pool)
        return True

    def _for_writing(self) -> Pool | None:
        pool = self._pool
        if pool is not None and pool.mode != "rw":  # it may be writable by now
            with self._open_lock.lock:
                self._drop(pool)
            pool = None
        if pool is not None and self._is_replaced(pool):
            pool = None
        pool = pool or self._open(create=True)
        if pool is not None and pool.mode != "rw":
            raise CacheError("read-only")
        return pool

    def _read_failed(self, pool: Pool | None, error: Exception) -> None:
        if pool is not None and is_damage(error) and self._replace(pool):
            return
        if is_busy(error):
            self._next_read_at = time.monotonic() + READ_RETRY_SECONDS
        with self._open_lock.lock:
            if pool is not None and folders.identity(self._database) != pool.file:
                self._drop(pool)  # deleted or moved: the next call opens it again
                return
        self._log_once("read", error)

    def _open(self, *, create: bool) -> Pool | None:
        """Return the verified database. None if it does not exist or the cache is off.

        After a failure because of a lock, the threads that have waited here meanwhile do not try again to read.
        """
        with self._open_lock.lock:
            if self._pool is not None or self._off:
                return self._pool
            if not create and (self._is_paused or folders.identity(self._database) is None):
                return None
            try:
                self._pool = self._open_or_create(create)
            except CacheError as error:
                self._turn_off(str(error))
            except sqlite3.OperationalError as error:
                if is_busy(error):
                    self._next_read_at = time.monotonic() + READ_RETRY_SECONDS
                raise
            return self._pool

    def _open_or_create(self, create: bool) -> Pool | None:
        network = folders.network_of(self._folder)
        if network is not None:
            raise CacheError(f"SQLite is unsafe on a network file system ({network}). Use a folder on a local disk.")
        while True:
            if folders.identity(self._folder) is not None:
                folders.harden(self._folder)
            seen = folders.identity(self._folder)
            reason = folders.foreign_file(self._folder) if seen is not None else None
            if reason is None:
                if not os.path.lexists(self._database):
                    if not create:
                        return None
                    import_module("embedkit_core.cache.disk.create").create(self._folder)
                    continue
                opened = open_checked(self._database)
                if isinstance(opened, Pool):
                    return opened
                reason = opened
            self._quarantine(reason, seen)

    def _replace(self, pool: Pool) -> bool:
        """Quarantine a damaged database. Return True if a retry may succeed."""
        with self._open_lock.lock:
            if self._pool is not pool:
                return True  # another thread did it
            if pool.mode != "rw":
                return False  # another process writes to it; apparent damage may be a write in progress
            moved = folders.identity(self._database) != pool.file
            self._drop()
            try:
                if not moved:
                    self._quarantine("damaged", folders.identity(self._folder))
            except CacheError as error:
                self._turn_off(str(error))
            return not self._off

    def _quarantine(self, reason: str, seen: folders.Identity | None) -> None:
        if self.stats.quarantined >= _MAX_QUARANTINED:
            raise CacheError(f"{reason}, for the {_MAX_QUARANTINED + 1}th time")
        try:
            renamed = folders.quarantine(self._folder, seen)
        except OSError as error:
            raise CacheError(f"{reason}, and the quarantine failed ({type(error).__name__})") from error
        if renamed is not None:
            self.stats.quarantined += 1
            self._pending_logs.append(f"Cache {self._folder} quarantined as {renamed.name} and recreated: {reason}")

    def _turn_off(self, reason: str) -> None:
        self._off = True
        self._pending_logs.append(f"Cache {self._folder} is off, so texts are embedded again: {reason}")

    def _log_once(self, operation: str, error: Exception) -> None:
        if operation not in self._logged_failures:
            self._logged_failures.add(operation)
            self._pending_logs.append(
                f"Cache {self._folder} cannot be {operation} for now ({_reason(error)}), so texts may be embedded "
                "again. Use a writable folder on a local disk, or cache=False."
            )

    def _flush_log(self) -> None:
        """Log pending messages outside of all locks: a log handler may call this cache."""
        while self._pending_logs:
            logger.warning("%s", self._pending_logs.popleft())

    def _drop(self, pool: Pool | None = None) -> None:
        if self._pool is not None and (pool is None or pool is self._pool):
            self._pool.close()
            self._pool = None


@again_after_fork
def open_checked(path: Path) -> Pool | str:
    """Open a database for writing; if that fails, for reading, in the modes that a read-only folder allows.

    Returns:
        The open database, or the reason why it is not a database of this library.

    Raises:
        sqlite3.Error: It cannot be opened.
        CacheError: It is damaged and read-only.
    """
    modes: tuple[Mode, ...] = ("rw", "ro", "private", "immutable")
    for mode in modes:
        try:
            return _open_as(path, mode)
        except sqlite3.Error as error:
            if is_damage(error):
                if mode == "rw":
                    return "damaged, or not a database"
                raise CacheError("damaged, and read-only") from error
            if mode == modes[-1] or result_code(error) not in _CANNOT_WRITE:
                raise
    raise AssertionError("the last mode returns or raises")


def _open_as(path: Path, mode: Mode) -> Pool | str:
    file = folders.identity(path)
    connection = connect(path, mode)
    reason: str | None = "replaced by another file"
    try:
        if file is not None and file == folders.identity(path):
            reason = schema_mismatch(connection)
            if reason is None:
                if mode == "rw":
                    connection.execute("PRAGMA journal_mode = wal")
                return Pool(path, mode, file, connection, old_triggers=has_old_triggers(connection))
        return str(reason)
    except BaseException:
        reason = "failed"
        raise
    finally:
        if reason is not None:
            close_all([connection])


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, (CacheError, sqlite3.Error)) else type(error).__name__
