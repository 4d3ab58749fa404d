"""SQLite connections of this process, all of which are closed before a fork.

SQLite keeps its locks in a table of the process. A child that is forked while a connection is open seems to hold locks
that it does not have, and loses its commits when the parent closes. So a fork waits until no other thread uses SQLite,
and closes the connections. Source: SQLite, https://www.sqlite.org/howtocorrupt.html, section 2.6.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

from embedkit_core.common.errors import CacheError

# "private" is for a read-only folder with a WAL and without its index (-shm), such as a copy: the index is built in the
# memory of the connection. "immutable" is for a read-only folder without a WAL.
Mode: TypeAlias = Literal["rw", "ro", "private", "immutable"]

P = ParamSpec("P")
T = TypeVar("T")
READ_WAIT_SECONDS = 1.0  # a read waits only while another process opens or closes the database
_FORK_WAIT_SECONDS = 2.0  # of a fork, for reads and writes in progress
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
    "wal_autocheckpoint = 224",  # pages of 32 kB: the WAL is 7 MB, not 27, while a process writes
    f"journal_size_limit = {64 << 20}",  # the WAL shrinks again after a bulk write
)


class HasIdleConnections(Protocol):
    """An object with connections that it does not use at the moment."""

    def close_idle(self) -> None:
        """Close them."""
        ...


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
        self.pools: weakref.WeakSet[HasIdleConnections] = weakref.WeakSet()
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


def register_pool(pool: HasIdleConnections) -> None:
    """Close the idle connections of a pool before each fork, as long as the pool lives."""
    _process.pools.add(pool)


def is_open(connection: sqlite3.Connection) -> bool:
    """Return False if a connection was closed, possibly by a fork."""
    return connection in _process.connections


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
        timeout=READ_WAIT_SECONDS,
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


def result_code(error: Exception) -> int:
    """Return the primary result code of SQLite. 0 if the error is of another kind."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: Exception) -> bool:
    """Return True if another connection has locked the database."""
    return result_code(error) == sqlite3.SQLITE_BUSY


def is_damage(error: Exception) -> bool:
    """Return True if a file is damaged, or not a database."""
    return isinstance(error, sqlite3.Error) and result_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


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


def set_busy_timeout(connection: sqlite3.Connection, seconds: float) -> None:
    """Set how long a statement waits for a lock."""
    connection.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def close_in_finalizer(idle: list[sqlite3.Connection]) -> None:
    """Close the connections of an object that is gone. If the process forks just now, the next `connect` does it."""
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
