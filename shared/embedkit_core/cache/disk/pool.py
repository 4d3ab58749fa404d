"""Pool of the connections of a cache database. A connection is used by one thread at a time."""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from embedkit_core.cache.codec import HEADER_BYTES, MAX_ENCODED_WIDTH
from embedkit_core.cache.disk.connections import (
    READ_WAIT_SECONDS,
    Mode,
    again_after_fork,
    close_all,
    close_in_finalizer,
    connect,
    is_busy,
    is_open,
    register_pool,
    set_busy_timeout,
)
from embedkit_core.cache.disk.folder import Identity
from embedkit_core.cache.disk.schema import REPLACE_TRIGGERS

BULK_WAIT_SECONDS = 30.0  # of a write of many rows, while another process has locked the database and commits nothing
_WRITE_POLL_SECONDS = 0.1
_MAX_IDLE_CONNECTIONS = 8
RENEW_AFTER_SECONDS = 30 * 86400.0  # so that a hit rarely causes a write
_RENEW_WAIT_SECONDS = 0.02  # of a read, to record the use of rows while another process writes
KEYS_PER_SELECT = 500  # SQLite may be built with a limit of 999 parameters

# Selects only rows as this library writes them: no pickle, no file, no value that could exhaust the memory.
VALID_VALUE = (
    "raw = 1 AND mode = 1 AND filename IS NULL"
    f" AND typeof(value) = 'blob' AND length(value) <= {HEADER_BYTES + 4 * MAX_ENCODED_WIDTH}"
)
# Only MARKS and ROWS are substituted, never a value. Rows are read in the order of the file, so each page once.
_SELECT = "SELECT key, value, CASE WHEN access_time < ? THEN rowid END FROM Cache WHERE "
_SELECT_ONE = f"{_SELECT}key = ? AND {VALID_VALUE}"
_SELECT_MANY = f"{_SELECT}rowid IN (SELECT rowid FROM Cache WHERE key IN (MARKS) AND raw = 1) AND {VALID_VALUE}"  # noqa: S608
_RENEW = "UPDATE Cache SET access_time = ? WHERE access_time < ? AND rowid IN (MARKS)"
# Every column is written, so an upsert repairs a row that was tampered with. A tag is kept if there is no new one.
_UPSERT = (
    "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)"
    " VALUES ROWS ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time, expire_time = NULL,"
    " access_time = excluded.access_time, access_count = 0, tag = coalesce(excluded.tag, tag), size = 0,"
    " mode = 1, filename = NULL, value = excluded.value"
)
_ROW = "(?, 1, ?, NULL, ?, 0, ?, 0, 1, NULL, ?)"
# Each statement releases the GIL, and gets it back up to 5 ms later if another thread is busy: so a statement has many
# rows. With powers of two, any number of rows takes few statements, and few distinct ones are prepared.
_ROWS_PER_INSERT = (128, 64, 32, 16, 8, 4, 2, 1)


FoundRow: TypeAlias = tuple[bytes, bytes, int | None]  # key, value, and the row ID if its last use is to be renewed


class NewRow(NamedTuple):
    """A row to write; `space` is the name of its vector space, `at` the time in Unix seconds."""

    key: bytes
    value: bytes
    space: str | None
    at: float


class Pool:
    """A database file with its connections. Use it only inside `FORK_BARRIER.entered()`.

    If its triggers have an old spelling, the first write replaces them. A read of a row whose recorded use is over
    `RENEW_AFTER_SECONDS` ago records the new one.
    """

    def __init__(
        self, path: Path, mode: Mode, file: Identity, first: sqlite3.Connection, *, old_triggers: bool = False
    ) -> None:
        self.mode: Mode = mode
        self.file = file
        self._old_triggers = old_triggers
        self._path = path
        self._closed = False
        self._idle = [first]
        register_pool(self)
        weakref.finalize(self, close_in_finalizer, self._idle)

    @again_after_fork
    def read(self, keys: Sequence[bytes]) -> list[FoundRow]:
        """Return the existing ones of up to `KEYS_PER_SELECT` keys. Raises sqlite3.Error."""
        query = _SELECT_ONE if len(keys) == 1 else _SELECT_MANY.replace("MARKS", ",".join("?" * len(keys)))
        stale_before = time.time() - RENEW_AFTER_SECONDS if self.mode == "rw" else 0.0
        connection = self._acquire()  # not `connection()`, which takes 1 us longer
        try:
            found: list[FoundRow] = connection.execute(query, (stale_before, *keys)).fetchall()
            if stale := [row[2] for row in found if row[2] is not None]:
                _renew(connection, stale)
        except BaseException:
            close_all([connection])
            raise
        self._release(connection)
        return found

    @again_after_fork
    def write(self, rows: Sequence[NewRow], patience: float) -> None:
        """Commit rows in one transaction, which begins as described for `execute_patiently`. Raises sqlite3.Error."""
        with self.connection() as connection:
            execute_patiently(connection, "BEGIN IMMEDIATE", patience)
            if self._old_triggers:
                for statement in REPLACE_TRIGGERS:
                    connection.execute(statement)
            _insert(connection, rows)
            connection.execute("COMMIT")
        self._old_triggers = False

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Use a connection inside the `with` block. An error closes it, which rolls back."""
        connection = self._acquire()
        try:
            yield connection
        except BaseException:
            close_all([connection])
            raise
        self._release(connection)

    def close(self) -> None:
        """Close all connections; those in use are closed when they are released."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the idle connections; others are opened on demand."""
        close_all(self._idle)

    def _acquire(self) -> sqlite3.Connection:
        try:
            while not is_open(connection := self._idle.pop()):
                pass  # a fork has closed it
        except IndexError:
            return connect(self._path, self.mode)
        return connection

    def _release(self, connection: sqlite3.Connection) -> None:
        if len(self._idle) >= _MAX_IDLE_CONNECTIONS:
            close_all([connection])
        else:
            self._idle.append(connection)
        if self._closed:  # after the append, so that the later one of two threads closes it
            self.close_idle()


def _insert(connection: sqlite3.Connection, rows: Sequence[NewRow]) -> None:
    start = 0
    for n in _ROWS_PER_INSERT:
        statement = _UPSERT.replace("ROWS", ",".join([_ROW] * n))
        while len(rows) - start >= n:
            batch = rows[start : start + n]
            connection.execute(
                statement, [field for row in batch for field in (row.key, row.at, row.at, row.space, row.value)]
            )
            start += n


def execute_patiently(connection: sqlite3.Connection, statement: str, patience: float) -> None:
    """Execute a statement that locks the database. Wait as long as other processes commit.

    Args:
        connection: The connection.
        statement: The statement.
        patience: How many seconds to wait without a commit of another process.

    Raises:
        sqlite3.Error: The statement failed, or another process has locked the database.
    """
    # SQLite polls a lock ever more rarely. Short waits in a row poll it often enough among many processes.
    set_busy_timeout(connection, _WRITE_POLL_SECONDS)
    last_commit: int | None = -1
    until = 0.0
    while True:
        try:
            connection.execute(statement)
            break
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            seen, now = _last_commit(connection), time.monotonic()
            if seen != last_commit:
                last_commit, until = seen, now + patience
            elif now > until:
                raise
    set_busy_timeout(connection, READ_WAIT_SECONDS)


def _last_commit(connection: sqlite3.Connection) -> int | None:
    """Return a number that changes with each commit of another connection. None if the database is locked for reads."""
    try:
        version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    return version


def _renew(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Set the last use of rows to now. They stay as they are if the database is busy or read-only."""
    now = time.time()
    statement = _RENEW.replace("MARKS", ",".join("?" * len(ids)))
    set_busy_timeout(connection, _RENEW_WAIT_SECONDS)
    with suppress(sqlite3.Error):
        connection.execute(statement, (now, now - RENEW_AFTER_SECONDS, *ids))
    set_busy_timeout(connection, READ_WAIT_SECONDS)
