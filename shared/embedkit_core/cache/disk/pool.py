"""Pool of SQLite connections. A connection is used by one thread at a time, and all are closed before a fork.

SQLite keeps its locks in a table of the process. A child that is forked while a connection is open seems to hold locks
that it does not have, and loses its commits when the parent closes. So a fork waits until no other thread uses SQLite,
and closes the connections. Source: SQLite, https://www.sqlite.org/howtocorrupt.html, section 2.6.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeAlias, TypeVar

from embedkit_core.cache.codec import HEADER_BYTES, MAX_ENCODED_WIDTH
from embedkit_core.cache.disk.folder import Identity
from embedkit_core.cache.disk.schema import REPLACE_TRIGGERS
from embedkit_core.common.errors import CacheError

# "private" is for a read-only folder with a WAL and without its index (-shm), such as a copy: the index is built in the
# memory of the connection. "immutable" is for a read-only folder without a WAL.
Mode: TypeAlias = Literal["rw", "ro", "private", "immutable"]

P = ParamSpec("P")
T = TypeVar("T")
BULK_WAIT_SECONDS = 30.0  # of a write of many rows, while another process has locked the database and commits nothing
_WRITE_POLL_SECONDS = 0.1
_READ_WAIT_SECONDS = 1.0  # a read waits only while another process opens or closes the database
_FORK_WAIT_SECONDS = 2.0  # of a fork, for reads and writes in progress
_MAX_IDLE_CONNECTIONS = 8
RENEW_AFTER_SECONDS = 30 * 86400.0  # so that a hit rarely causes a write
_RENEW_WAIT_SECONDS = 0.02  # of a read, to record the use of rows while another process writes
KEYS_PER_SELECT = 500  # SQLite may be built with a limit of 999 parameters
_OPTIONS: dict[Mode, str] = {
    "rw": "mode=rw",
    "ro": "mode=ro",
    "private": f"mode=ro&vfs={'unix' if os.name == 'posix' else 'win32'}-none",
    "immutable": "mode=ro&immutable=1",
}
_PRAGMAS = (
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "mmap_size = 0",
    "synchronous = NORMAL",
    f"journal_size_limit = {64 << 20}",  # the WAL shrinks again after a bulk write
)

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


class ForkBarrier:
    """Counts the users of SQLite in this process, and blocks new ones while it forks.

    A signal handler or finalizer can interrupt a thread anywhere, and use SQLite or fork. So entering and leaving take
    no lock, a thread that is inside enters again without waiting, and a fork does not wait for its own thread.
    """

    def __init__(self) -> None:
        self._users: dict[object, int] = {}  # with their thread IDs
        self.renew()

    def renew(self) -> None:
        """Admit users, and keep those of this thread: a forked child has no other."""
        self._users = {user: thread for user, thread in self._users.items() if thread == threading.get_ident()}
        self._changed = threading.Condition(threading.RLock())
        self._forks = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Use SQLite inside the `with` block; wait before it while the process forks."""
        user = object()
        try:
            while not self.try_enter(user):
                with self._changed:
                    self._changed.wait_for(lambda: not self._forks)
            yield
        finally:
            try:
                self.leave(user)
            except BaseException:  # a KeyboardInterrupt: a fork would wait for this user
                self.leave(user)
                raise

    def leave(self, user: object) -> None:
        """Remove a user."""
        self._users.pop(user, None)
        if self._forks:
            with self._changed:
                self._changed.notify_all()

    def try_enter(self, user: object) -> bool:
        """Add a user without waiting, so that a finalizer may call it anywhere. Return True on success."""
        self._users[user] = threading.get_ident()
        if not self._forks or list(self._users.values()).count(threading.get_ident()) > 1:
            return True
        self.leave(user)
        return False

    def shut(self, timeout: float) -> bool:
        """Block new users, and wait up to `timeout` seconds for other threads. Return True if none of them is left."""
        own = threading.get_ident()
        with self._changed:
            self._forks += 1
            return self._changed.wait_for(lambda: set(self._users.values()) <= {own}, timeout)

    def open(self) -> None:
        """Admit users again, unless another thread forks too."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


class _Process:
    """Pools and connections of this process, and the hooks of a fork."""

    def __init__(self) -> None:
        self.pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        self.connections: set[sqlite3.Connection] = set()
        self.orphans: list[sqlite3.Connection] = []  # of pools whose finalizer could not close them
        self.forks = 0  # that have closed all connections
        self.idle_at_fork = True
        self.usable = True

    def before_fork(self) -> None:
        self.idle_at_fork = FORK_BARRIER.shut(_FORK_WAIT_SECONDS)
        for pool in list(self.pools):
            pool.close_idle()
        close_all(self.orphans)
        if self.idle_at_fork:  # others are in use by this thread, which forks in a signal handler
            self.forks += 1
            close_all(list(self.connections))

    def after_fork_in_child(self) -> None:
        if not self.idle_at_fork:
            self.usable = False
            _leak_connections(self.connections)
        FORK_BARRIER.renew()


def again_after_fork(work: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that uses a connection: repeat it if its thread has forked meanwhile, in a signal handler.

    The fork has closed the connection, which has rolled its transaction back.
    """

    @functools.wraps(work)
    def repeating(*args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            forks = _process.forks
            try:
                return work(*args, **kwargs)
            except sqlite3.ProgrammingError:
                if _process.forks == forks:
                    raise

    return repeating


class _Connection(sqlite3.Connection):
    """A connection that a fork finds before it is open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _process.connections.add(self)
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            _process.connections.discard(self)
            raise


def _leak_connections(connections: Iterable[sqlite3.Connection]) -> None:
    """Keep connections of the parent open, even at the exit of the interpreter."""
    try:
        from ctypes import py_object, pythonapi
    except ImportError:  # an interpreter without reference counts
        return
    for connection in connections:
        pythonapi.Py_IncRef(py_object(connection))


FORK_BARRIER = ForkBarrier()
_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_process.before_fork, after_in_parent=FORK_BARRIER.open, after_in_child=_process.after_fork_in_child
    )


class Pool:
    """A database file with its connections. Use it only inside `FORK_BARRIER.entered()`.

    If its triggers have an old spelling, the first write replaces them. A read of a row whose recorded use is over
    `RENEW_AFTER_SECONDS` ago records the new one.
    """

    def __init__(
        self, path: Path, mode: Mode, file: Identity, first: sqlite3.Connection, *, old_triggers: bool = False
    ) -> None:
        self.mode = mode
        self.file = file
        self._old_triggers = old_triggers
        self._path = path
        self._closed = False
        self._idle = [first]
        _process.pools.add(self)
        weakref.finalize(self, _close_connections, self._idle)

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
            while (connection := self._idle.pop()) not in _process.connections:
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


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Open a database that exists.

    Raises:
        CacheError: This process was forked while its parent used SQLite.
        sqlite3.Error: It cannot be opened.
    """
    if not _process.usable:
        raise CacheError("this process was forked during a read or write")
    connection = sqlite3.connect(
        f"{path.as_uri()}?{_OPTIONS[mode]}",
        uri=True,
        timeout=_READ_WAIT_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        factory=_Connection,
    )
    connection.text_factory = _text
    try:
        close_all(_process.orphans)
        if mode == "private":  # before the first read
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        close_all([connection])
        raise
    return connection


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
    _set_busy_timeout(connection, _WRITE_POLL_SECONDS)
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
    _set_busy_timeout(connection, _READ_WAIT_SECONDS)


def _set_busy_timeout(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def _last_commit(connection: sqlite3.Connection) -> int | None:
    """Return a number that changes with each commit of another connection. None if the database is locked for reads."""
    try:
        version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    except sqlite3.OperationalError:
        return None
    return version


def result_code(error: Exception) -> int:
    """Return the primary result code of SQLite. 0 if the error is of another kind."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: Exception) -> bool:
    """Return True if another connection has locked the database."""
    return result_code(error) == sqlite3.SQLITE_BUSY


def close_all(connections: list[sqlite3.Connection]) -> None:
    """Close connections and remove them from the list."""
    while connections:
        try:
            connection = connections.pop()
        except IndexError:  # another thread took the last one
            return
        _process.connections.discard(connection)
        with suppress(sqlite3.ProgrammingError):  # a signal handler forks before it is open
            connection.close()


def _renew(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Set the last use of rows to now. They stay as they are if the database is busy or read-only."""
    now = time.time()
    statement = _RENEW.replace("MARKS", ",".join("?" * len(ids)))
    _set_busy_timeout(connection, _RENEW_WAIT_SECONDS)
    with suppress(sqlite3.Error):
        connection.execute(statement, (now, now - RENEW_AFTER_SECONDS, *ids))
    _set_busy_timeout(connection, _READ_WAIT_SECONDS)


def _close_connections(idle: list[sqlite3.Connection]) -> None:
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
    return raw.decode(errors="replace")  # forged text must not raise
