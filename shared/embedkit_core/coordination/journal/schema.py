"""Tables of a journal. A file with other tables was not created by this library."""

from __future__ import annotations

import secrets
import sqlite3

from embedkit_core.common.errors import JobError

DATABASE = "jobs.db"
FOLDER = "embedkit-jobs-v1"  # inside the user's cache folder
APPLICATION_ID = 0x454B4A42  # "EKJB"
VERSION = 1

_TABLES = (
    "CREATE TABLE Meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # settings: JSON of the embedder's arguments. price: USD per million tokens, NULL if unknown. options: JSON.
    "CREATE TABLE Jobs (id TEXT PRIMARY KEY, created_at REAL NOT NULL, model TEXT NOT NULL, input_type TEXT NOT NULL,"
    " fingerprint TEXT NOT NULL, settings TEXT NOT NULL, account TEXT NOT NULL, endpoint TEXT NOT NULL,"
    " options TEXT NOT NULL, price TEXT, state TEXT NOT NULL, texts INTEGER NOT NULL, unique_texts INTEGER NOT NULL,"
    " cache_hits INTEGER NOT NULL, elsewhere INTEGER NOT NULL, left_out INTEGER NOT NULL) WITHOUT ROWID",
    # file_id, remote_id: the provider's. outputs: JSON list of the provider's file IDs. Times are seconds since 1970.
    "CREATE TABLE Batches (nonce TEXT PRIMARY KEY, job TEXT NOT NULL, number INTEGER NOT NULL, step TEXT NOT NULL,"
    " generation INTEGER NOT NULL, lines INTEGER NOT NULL, texts INTEGER NOT NULL, tokens INTEGER NOT NULL,"
    " max_tokens INTEGER NOT NULL, file_id TEXT, remote_id TEXT, status TEXT NOT NULL, outputs TEXT NOT NULL,"
    " done INTEGER NOT NULL, failed INTEGER NOT NULL, expires_at REAL, stepped_at REAL NOT NULL,"
    " not_before REAL NOT NULL, tries INTEGER NOT NULL, creations INTEGER NOT NULL, error TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX Batches_job ON Batches (job)",
    # keys: 32 bytes each, in the order of the line's texts; empty once it has ended. billed: NULL if it is unknown.
    "CREATE TABLE Lines (nonce TEXT, number INTEGER, digest TEXT NOT NULL, keys BLOB NOT NULL, texts INTEGER NOT NULL,"
    " tokens INTEGER NOT NULL, max_tokens INTEGER NOT NULL, state TEXT NOT NULL, billed INTEGER, code TEXT NOT NULL,"
    " PRIMARY KEY (nonce, number)) WITHOUT ROWID",
    # prefix: the first 8 bytes of a key whose text is in an open line.
    "CREATE TABLE Claims (prefix BLOB, nonce TEXT, PRIMARY KEY (prefix, nonce)) WITHOUT ROWID",
    # The most tokens that a provider queues, as learned from a refusal.
    "CREATE TABLE Queues (account TEXT, model TEXT, tokens INTEGER NOT NULL, learned_at REAL NOT NULL,"
    " PRIMARY KEY (account, model))"
    " WITHOUT ROWID",
)


def fill(connection: sqlite3.Connection) -> None:
    """Create the tables in an empty database."""
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("INSERT INTO Meta VALUES ('salt', ?)", (secrets.token_bytes(32),))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def check(connection: sqlite3.Connection, file: object) -> None:
    """Check that a database has the tables of this version.

    Raises:
        JobError: It has not.
        sqlite3.Error: It cannot be read, or is not a database.
    """
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application == APPLICATION_ID and version != VERSION:
        raise JobError(
            f"The journal of batch jobs {file} has version {version}, and this process uses version {VERSION}. Use the "
            "version of rag-embedkit that created it."
        )
    found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 100")}
    if application != APPLICATION_ID or found != set(_TABLES):
        raise JobError(
            f"The journal of batch jobs {file} was not created by this library. Use another cache folder, or move the "
            "file away if no job is open."
        )
