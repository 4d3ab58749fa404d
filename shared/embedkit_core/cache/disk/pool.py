"""Connections to a database, lent to one thread at a time, and none open while the process forks.

SQLite keeps its locks in a table of the process: a child born while a connection is open believes it holds locks that
it does not, and what it commits is lost when the parent closes. So a fork waits until nobody uses SQLite, and closes
what is open. Source: SQLite, https://www.sqlite.org/howtocorrupt.html, section 2.6.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

from embedkit_core.cache.codec import HEADER_BYTES, MAX_DIMENSIONS
from embedkit_core.cache.disk.folder import Identity
from embedkit_core.common.errors import CacheError

Mode: TypeAlias = Literal["rw", "ro", "immutable"]

WRITE_SECONDS = 30.0  # how long a write waits for other processes to write
_READ_SECONDS = 5.0  # a read waits only while another process opens or closes the database
_FORK_SECONDS = 1.0  # how long a fork waits for reads and writes under way
_MAX_IDLE = 8
BLOCK = 500  # keys in one SELECT; SQLite may be built to take 999
_OPTIONS: dict[Mode, str] = {"rw": "mode=rw", "ro": "mode=ro", "immutable": "mode=ro&immutable=1"}
_PRAGMAS = (
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",
    "synchronous = NORMAL",
    f"journal_size_limit = {64 << 20}",  # a bulk write must not leave its size behind
)

# Only what we store ourselves: no pickle, nothing in a file, nothing that would fill the memory.
_OURS = (
    "raw = 1 AND mode = 1 AND filename IS NULL"
    f" AND typeof(value) = 'blob' AND length(value) <= {HEADER_BYTES + 4 * MAX_DIMENSIONS}"
)
# The marks are filled in, never a value. Rows are read in the order in which they lie in the file, each page once.
_KEYS = "SELECT rowid, key FROM Cache WHERE rowid > ? AND raw = 1 ORDER BY rowid LIMIT ?"
_READ = "SELECT key, value FROM Cache WHERE "
_ONE = f"{_READ}key = ? AND {_OURS}"
_MANY = f"{_READ}rowid IN (SELECT rowid FROM Cache WHERE key IN (MARKS) AND raw = 1) AND {_OURS}"  # noqa: S608
# Every column is given again: a row that somebody bent is healed.
_WRITE = (
    "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode, filename, value)"
    " VALUES ROWS ON CONFLICT (key, raw) DO UPDATE SET store_time = excluded.store_time, expire_time = NULL,"
    " access_time = excluded.access_time, access_count = 0, tag = NULL, size = 0, mode = 1, filename = NULL,"
    " value = excluded.value"
)
_ROW = "(?, 1, ?, NULL, ?, 0, NULL, 0, 1, NULL, ?)"
# Rows in one statement: at each, SQLite lets go of the interpreter, and gets it back 5 ms later where another thread is
# busy. Powers of two, so that any number of rows is few statements, and few statements are prepared.
_KEYS_PER_READ = (128, 64, 32, 16, 8, 4, 2, 1)


class ForkBarrier:
    """Counts who uses SQLite, and keeps newcomers out while the process forks."""

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._users: set[object] = set()
        self._shut = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside."""
        user = object()
        try:
            with self._lock:
                while self._shut:
                    self._changed.wait()
                self._users.add(user)
            yield
        finally:
            try:
                self.leave(user)
            except BaseException:  # an interrupt: a fork would wait for who is not there
                self.leave(user)
                raise

    def leave(self, user: object) -> None:
        """Take in that somebody has left; a child that forked inside knows of nobody."""
        with self._lock:
            self._users.discard(user)
            if self._shut:
                self._changed.notify_all()

    def try_enter(self, user: object) -> bool:
        """Enter if nobody is in the way; never waits, so a finalizer may call it wherever it interrupts."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if not self._shut:
                self._users.add(user)
            return not self._shut
        finally:
            self._lock.release()

    def shut(self, timeout: float) -> bool:
        """Keep newcomers out and wait, in seconds, until the last one has left; say whether it has."""
        with self._lock:
            self._shut = True
            return self._changed.wait_for(lambda: not self._users, timeout)

    def open(self) -> None:
        """Let newcomers in again."""
        with self._lock:
            self._shut = False
            self._changed.notify_all()


class _Process:
    """What this process has open."""

    def __init__(self) -> None:
        self.pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        self.connections: set[sqlite3.Connection] = set()
        self.orphans: list[sqlite3.Connection] = []  # of pools that died where nothing could be closed
        self.clean_fork = True
        self.usable = True

    def before_fork(self) -> None:
        self.clean_fork = FORK_BARRIER.shut(_FORK_SECONDS)
        for pool in list(self.pools):
            pool.close_idle()
        close_all(self.orphans)

    def in_child(self) -> None:
        if not self.clean_fork:
            self.usable = False
            _leak_connections(self.connections)
        FORK_BARRIER._renew()


def _leak_connections(connections: Iterable[sqlite3.Connection]) -> None:
    """Keep even the end of the interpreter from closing what belongs to the parent."""
    try:
        from ctypes import py_object, pythonapi
    except ImportError:  # an interpreter that does not count references
        return
    for connection in connections:
        pythonapi.Py_IncRef(py_object(connection))


FORK_BARRIER = ForkBarrier()
_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_process.before_fork, after_in_parent=FORK_BARRIER.open, after_in_child=_process.in_child
    )


class Pool:
    """One database file and the connections to it; used inside the `GATE` only."""

    def __init__(self, path: Path, mode: Mode, file: Identity, first: sqlite3.Connection) -> None:
        self.mode = mode
        self.file = file
        self._path = path
        self._closed = False
        self._idle = [first]
        _process.pools.add(self)
        weakref.finalize(self, _close_connection, self._idle)

    def read(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        """Give those of up to `BLOCK` keys that there are with their values, in any order. Raises sqlite3.Error."""
        connection = self._borrow()
        try:
            query = _ONE if len(keys) == 1 else _MANY.replace("MARKS", ",".join("?" * len(keys)))
            found = connection.execute(query, keys).fetchall()
        except BaseException:
            close_all([connection])
            raise
        self._give_back(connection)
        return found

    def keys(self, after: int) -> list[tuple[int, bytes]]:
        """Give the next keys behind a place in the database, with theirs, `BLOCK` at most. Raises sqlite3.Error."""
        connection = self._borrow()
        try:
            found = connection.execute(_KEYS, (after, BLOCK)).fetchall()
        except BaseException:
            close_all([connection])
            raise
        self._give_back(connection)
        return found

    def write(self, rows: Sequence[tuple[bytes, bytes, float]]) -> None:
        """Commit keys, values and times (Unix seconds), all or none. Raises sqlite3.Error."""
        connection = self._borrow()
        try:
            _begin(connection)
            _insert(connection, rows)
            connection.execute("COMMIT")
        except BaseException:
            close_all([connection])  # which rolls back
            raise
        self._give_back(connection)

    def close(self) -> None:
        """Close every connection, those in use when they come back."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections nobody uses; more are opened when they are wanted."""
        close_all(self._idle)

    def _borrow(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return connect(self._path, self.mode)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        if len(self._idle) >= _MAX_IDLE:
            close_all([connection])
        else:
            self._idle.append(connection)
        if self._closed:  # after the append: whichever of two threads comes last closes it
            self.close_idle()


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Open a database that exists.

    Raises:
        CacheError: this process was forked while its parent used SQLite.
        sqlite3.Error: it cannot be opened.
    """
    if not _process.usable:
        raise CacheError("this process was forked in the middle of a read or write that took too long")
    connection = sqlite3.connect(
        f"{path.as_uri()}?{_OPTIONS[mode]}",
        uri=True,
        timeout=_READ_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    _process.connections.add(connection)
    connection.text_factory = _text
    try:
        close_all(_process.orphans)
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        close_all([connection])
        raise
    return connection


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes, float]]) -> None:
    start = 0
    for together in _KEYS_PER_READ:
        statement = _WRITE.replace("ROWS", ",".join([_ROW] * together))
        while len(rows) - start >= together:
            some = rows[start : start + together]
            connection.execute(statement, [field for key, value, at in some for field in (key, at, at, value)])
            start += together


def _begin(connection: sqlite3.Connection) -> None:
    until = time.monotonic() + WRITE_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        else:
            return


def close_all(connections: list[sqlite3.Connection]) -> None:
    """Close connections and forget them."""
    while connections:
        try:
            connection = connections.pop()
        except IndexError:  # another thread took the last one
            return
        _process.connections.discard(connection)
        connection.close()


def _close_connection(idle: list[sqlite3.Connection]) -> None:
    user = object()
    if not FORK_BARRIER.try_enter(user):
        _process.orphans.extend(idle)
        return
    try:
        close_all(_process.orphans)
        close_all(idle)
    finally:
        FORK_BARRIER.leave(user)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")  # planted text must not raise
