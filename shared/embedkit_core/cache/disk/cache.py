"""Vectors in a folder of the user's: a SQLite database made by diskcache, opened only where it is as we made it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedkit_core.cache.codec import decode_all, encode_all
from embedkit_core.cache.disk import folder as folders
from embedkit_core.cache.disk.pool import BLOCK, FORK_BARRIER, Mode, Pool, close_all, connect
from embedkit_core.cache.disk.schema import schema_mismatch
from embedkit_core.common.errors import CacheError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.types import Entry

WRITE_AGAIN_SECONDS = 60.0  # after a write that failed: a full disk may be emptied, a stuck process may end
_MAX_QUARANTINED = 3  # in one process: a disk that damages every database must not be filled with them

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CANNOT_WRITE = frozenset(
    {
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
    }
)

logger = logging.getLogger("embedkit_core")


@dataclass(slots=True)
class Stats:
    """What went wrong: vectors not written, values read that were damaged, and databases set aside in this process."""

    write_failures: int = 0
    damaged: int = 0
    quarantined: int = 0


class DiskCache:
    """A cache in `folder`/embedkit-v1, for any number of threads and processes on one machine; nothing is evicted.

    Vectors are float32 (dimensions,). The folder is made at the first write. What cannot be read is a miss, what cannot
    be written is counted in `stats` and logged once, and neither raises. What is committed survives a killed process,
    not a power cut. A database that is damaged or not ours is set aside and a new one begun; on a network file system,
    or where the folder is a link or another user's, nothing is kept.
    """

    def __init__(self, folder: Path | str) -> None:
        self.stats = Stats()
        self._own = Path(folder).expanduser().resolve() / folders.OWN_FOLDER
        self._database = self._own / folders.DATABASE
        self._pool: Pool | None = None
        self._off = False
        self._write_again_at = 0.0
        self._logged: set[str] = set()
        self._pending_logs: deque[str] = deque()
        # In this order: the gate, the writer's lock, the opener's. Nothing is called out to inside them.
        self._writing = ForkLock()
        self._opening = ForkLock()

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Give the entries there are; the others are misses."""
        found: dict[bytes, Entry] = {}
        for block in self.get_blocks(keys):
            found |= block
        return found

    def get_blocks(self, keys: Sequence[bytes]) -> Iterator[dict[bytes, Entry]]:
        """Give the same block by block, so that not all that is read is in memory at once."""
        for start in range(0, len(keys), BLOCK):
            found = self._get_block(keys[start : start + BLOCK])
            if found is None:
                return
            yield found

    def _get_block(self, keys: Sequence[bytes]) -> dict[bytes, Entry] | None:
        """Give one block, or None where nothing can be read now: to try the next one might mean to wait for each."""
        rows: list[tuple[bytes, bytes]] | None = None
        pool = None
        with FORK_BARRIER.entered():
            try:
                pool = self._pool or self._open(create=False)
                if pool is not None:
                    rows = pool.read(keys)
            except (OSError, sqlite3.Error, CacheError) as error:
                self._read_failed(pool, error)
        self._flush_log()
        if rows is None:
            return None
        found = decode_all(rows)
        if len(found) < len(rows):
            with self._opening.lock:
                self.stats.damaged += len(rows) - len(found)
        return found

    def all_keys(self) -> Iterator[list[bytes]]:
        """Give all keys there are, block by block, those that are kept meanwhile too.

        Raises:
            CacheError: the folder cannot be read.
        """
        after = -1
        while True:
            try:
                with FORK_BARRIER.entered():
                    pool = self._pool or self._open(create=False)
                    found = [] if pool is None else pool.keys(after)
            except (OSError, sqlite3.Error) as error:
                raise CacheError(f"the cache cannot be read ({type(error).__name__})") from None
            self._flush_log()
            if not found:
                return
            after = found[-1][0]
            yield [bytes(key) for _, key in found]

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Commit entries in one transaction; a damaged value under the same key is replaced.

        Raises:
            ValueError: an entry is not one row of finite numbers; nothing was written.
        """
        now = time.time()
        rows = [(key, value, now) for key, value in encode_all(items)]
        if not rows:
            return
        with FORK_BARRIER.entered(), self._writing.lock:
            if not self._write(rows):
                self.stats.write_failures += len(rows)
        self._flush_log()

    def close(self) -> None:
        """Close this process's connections, until the next call; the last process to close merges the WAL."""
        with FORK_BARRIER.entered(), self._opening.lock:
            self._drop()
            self._off = False
            self._write_again_at = 0.0

    @property
    def is_off(self) -> bool:
        """Tell whether nothing is read or kept, for a reason that the log has."""
        return self._off

    def __repr__(self) -> str:
        return f"DiskCache({str(self._own.parent)!r})"

    def _write(self, rows: Sequence[tuple[bytes, bytes, float]]) -> bool:
        if time.monotonic() < self._write_again_at:
            return False
        for last in (False, True):
            pool = None
            try:
                pool = self._for_writing()
                if pool is None:
                    return False
                pool.write(rows)
            except Exception as error:  # whatever diskcache may raise too
                if not last and pool is not None and _is_damage(error) and self._replace(pool):
                    continue
                self._write_again_at = time.monotonic() + WRITE_AGAIN_SECONDS
                self._log_once("written", error)
                return False
            return True
        return False

    def _for_writing(self) -> Pool | None:
        pool = self._pool
        if pool is not None and (pool.mode != "rw" or folders.identity(self._database) != pool.file):
            with self._opening.lock:  # it may be writable by now; or it was moved or deleted, and is written to in vain
                self._drop(pool)
            pool = None
        pool = pool or self._open(create=True)
        if pool is not None and pool.mode != "rw":
            raise CacheError("it is read-only")
        return pool

    def _read_failed(self, pool: Pool | None, error: Exception) -> None:
        if pool is not None and _is_damage(error) and self._replace(pool):
            return
        with self._opening.lock:
            if pool is not None and folders.identity(self._database) != pool.file:
                self._drop(pool)  # deleted or moved: the next call looks again
                return
        self._log_once("read", error)

    def _open(self, *, create: bool) -> Pool | None:
        """Give the checked database, or None where there is none to be had."""
        with self._opening.lock:
            if self._pool is not None or self._off:
                return self._pool
            if not create and not os.path.lexists(self._database):
                return None
            try:
                self._pool = self._open_or_create(create)
            except CacheError as error:
                self._turn_off(str(error))
            return self._pool

    def _open_or_create(self, create: bool) -> Pool | None:
        network = folders.network_of(self._own)
        if network is not None:
            raise CacheError(f"SQLite is unsafe on a network file system ({network}); name a folder on a local disk")
        while True:
            if folders.identity(self._own) is not None:
                folders.harden(self._own)
            seen = folders.identity(self._own)
            reason = folders.foreign_file(self._own) if seen is not None else None
            if reason is None:
                if not os.path.lexists(self._database):
                    if not create:
                        return None
                    _create(self._own)
                    continue
                opened = open_checked(self._database)
                if isinstance(opened, Pool):
                    return opened
                reason = opened
            self._quarantine(reason, seen)

    def _replace(self, pool: Pool) -> bool:
        """Set a damaged database aside; say whether there is reason to try again."""
        with self._opening.lock:
            if self._pool is not pool:
                return True  # another thread has
            if pool.mode != "rw":
                return False  # somebody else writes to it, and what looks like damage may be a write under way
            moved = folders.identity(self._database) != pool.file
            self._drop()
            try:
                if not moved:
                    self._quarantine("it is damaged", folders.identity(self._own))
            except CacheError as error:
                self._turn_off(str(error))
            return not self._off

    def _quarantine(self, reason: str, seen: folders.Identity | None) -> None:
        if self.stats.quarantined >= _MAX_QUARANTINED:
            raise CacheError(f"{reason}, for the {_MAX_QUARANTINED + 1}th time")
        try:
            done = folders.quarantine(self._own, seen)
        except OSError as error:
            raise CacheError(f"{reason}, and it could not be set aside ({type(error).__name__})") from error
        if done:
            self.stats.quarantined += 1
            self._pending_logs.append(f"the cache {self._own} was set aside and a new one is begun: {reason}")

    def _turn_off(self, reason: str) -> None:
        self._off = True
        self._pending_logs.append(f"going on without the cache {self._own}, so that texts are paid for again: {reason}")

    def _log_once(self, done: str, error: Exception) -> None:
        if done not in self._logged:
            self._logged.add(done)
            what = str(error) if isinstance(error, (CacheError, sqlite3.Error)) else type(error).__name__
            self._pending_logs.append(
                f"the cache {self._own} cannot be {done} for now ({what}): texts may be paid for again; "
                "give a writable folder on a local disk, or cache=False"
            )

    def _flush_log(self) -> None:
        """Log what there is to say, outside every lock: a log handler may be anything, and may come back to us."""
        while self._pending_logs:
            logger.warning("%s", self._pending_logs.popleft())

    def _drop(self, pool: Pool | None = None) -> None:
        if self._pool is not None and (pool is None or pool is self._pool):
            self._pool.close()
            self._pool = None


def open_checked(path: Path) -> Pool | str:
    """Open a database as far as it lets us: to write, to read, or as a file that nobody changes.

    Gives the reason as text where it is not ours. Raises sqlite3.Error, CacheError.
    """
    modes: tuple[Mode, ...] = ("rw", "ro", "immutable")
    for mode in modes:
        try:
            return _open_as(path, mode)
        except sqlite3.Error as error:
            if _is_damage(error):
                if mode == "rw":
                    return "it is damaged, or no database"
                raise CacheError("it is damaged, and read-only") from error
            if mode == modes[-1] or _code(error) not in _CANNOT_WRITE:
                raise
    raise AssertionError("the last mode returns or raises")


def _open_as(path: Path, mode: Mode) -> Pool | str:
    file = folders.identity(path)
    connection = connect(path, mode)
    reason: str | None = "it is another file by now"
    try:
        if file is not None and file == folders.identity(path):
            reason = schema_mismatch(connection)
            if reason is None:
                if mode == "rw":
                    connection.execute("PRAGMA journal_mode = wal")
                return Pool(path, mode, file, connection)
        return str(reason)
    except BaseException:
        reason = "failed"
        raise
    finally:
        if reason is not None:
            close_all([connection])


def _create(own: Path) -> None:
    import_module("embedkit_core.cache.disk.create").create(own)  # imports diskcache


def _code(error: Exception) -> Any:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and _code(error) in _DAMAGE
