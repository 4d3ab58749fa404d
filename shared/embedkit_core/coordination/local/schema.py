"""Tables of a coordination database. A file with other tables was not created by this library."""

from __future__ import annotations

import secrets
import sqlite3

from embedkit_core.common.errors import CoordinationError

DATABASE = "coordination.db"
APPLICATION_ID = 0x454B434F  # "EKCO"
VERSION = 2

# The owner 0 stands for all that are gone: its horizon is the greatest of theirs.
REMOVED_OWNERS = 0
ACTIVE, LOST, ENDED = range(3)  # states of a lease

_TABLES_1 = (  # of version 1
    "CREATE TABLE Meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # name: of the lock file. renewed_at: last sign of life. horizon: when the last of its forgotten leases ended.
    "CREATE TABLE Owners (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, renewed_at REAL NOT NULL,"
    " horizon REAL NOT NULL)",
    # keys: the first 8 bytes of each key. reserved: JSON, [nano-USD, tokens] by budget.
    "CREATE TABLE Leases (id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL, account TEXT NOT NULL,"
    " model TEXT NOT NULL, permit_at REAL, permit_tokens INTEGER NOT NULL, reserved TEXT, state INTEGER NOT NULL,"
    " ended_at REAL, keys BLOB NOT NULL)",
    "CREATE INDEX Leases_ended_at ON Leases (ended_at) WHERE ended_at IS NOT NULL",
    "CREATE TABLE Models (account TEXT, model TEXT, requests BLOB NOT NULL, tokens BLOB NOT NULL,"
    " paused_until REAL NOT NULL, used_at REAL NOT NULL, PRIMARY KEY (account, model)) WITHOUT ROWID",
    "CREATE TABLE Demand (account TEXT, model TEXT, owner INTEGER, requests INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " noted_at REAL NOT NULL, PRIMARY KEY (account, model, owner)) WITHOUT ROWID",
    # Limits are NULL if there are none. Amounts are nano-USD and tokens.
    "CREATE TABLE Budgets (name TEXT PRIMARY KEY, usd INTEGER, tokens INTEGER, spent_usd INTEGER NOT NULL,"
    " spent_tokens INTEGER NOT NULL, lost_usd INTEGER NOT NULL, lost_tokens INTEGER NOT NULL,"
    " held_usd INTEGER NOT NULL, held_tokens INTEGER NOT NULL) WITHOUT ROWID",
)
_HOLDS = (
    # An ended hold stays if it has cost something.
    "CREATE TABLE Holds (id TEXT, budget TEXT, held_usd INTEGER NOT NULL, held_tokens INTEGER NOT NULL,"
    " billed_usd INTEGER NOT NULL, billed_tokens INTEGER NOT NULL, is_ended INTEGER NOT NULL,"
    " PRIMARY KEY (id, budget)) WITHOUT ROWID",
    "CREATE INDEX Holds_budget ON Holds (budget) WHERE is_ended = 0",
)
_TABLES = {1: _TABLES_1, VERSION: _TABLES_1 + _HOLDS}


def fill(connection: sqlite3.Connection) -> None:
    """Create the tables in an empty database."""
    connection.execute("PRAGMA page_size = 4096")
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES[VERSION]:
        connection.execute(statement)
    connection.execute("INSERT INTO Meta VALUES ('salt', ?)", (secrets.token_bytes(32),))
    connection.execute("INSERT INTO Owners VALUES (?, '', -9e999, -9e999)", (REMOVED_OWNERS,))
    # A file that replaces a deleted one has other lease IDs: one of the old file ends no lease of the new one.
    connection.execute("INSERT INTO sqlite_sequence VALUES ('Leases', ?)", (secrets.randbits(40) << 20,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def check(connection: sqlite3.Connection, file: object) -> None:
    """Check that a database has the tables of this version. Those that version 1 lacks are added.

    Raises:
        CoordinationError: It has not.
        sqlite3.Error: It cannot be read, or is not a database.
    """
    connection.execute("BEGIN")  # another process may upgrade the file meanwhile
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID and version not in _TABLES:
        raise CoordinationError(
            f"Coordination file {file} has version {version}, and this process uses version {VERSION}. Use one version "
            "of rag-embedkit in all processes that share the cache folder, or another cache folder."
        )
    found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 100")}
    connection.execute("COMMIT")
    expected = set(_TABLES.get(version, ()))
    if application != APPLICATION_ID or found - {"CREATE TABLE sqlite_sequence(name,seq)"} != expected:
        raise CoordinationError(
            f"Coordination file {file} was not created by this library. Move it away, or use another cache folder."
        )
    if version != VERSION:
        _upgrade(connection)


def _upgrade(connection: sqlite3.Connection) -> None:
    """Add the tables of version 2, unless another process has just done so.

    A process of version 1 that has the file open goes on: the other tables are the same. It cannot open it again.
    """
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 1:
        for statement in _HOLDS:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
