"""Exact schema and settings of a cache database. A database that differs was not created by this library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

# The texts are those of diskcache 5.6.3, so that it reads and writes the database too. But its triggers have strings in
# double quotes, which SQLite builds with SQLITE_DQS=0 take for names of columns.
_CREATE_TRIGGER = (
    "CREATE TRIGGER {} AFTER {} ON Cache FOR EACH ROW BEGIN UPDATE Settings SET value = value {} WHERE key = '{}'; END"
)
_TRIGGERS = {
    name: _CREATE_TRIGGER.format(name, event, change, counter)
    for name, event, change, counter in (
        ("Settings_count_insert", "INSERT", "+ 1", "count"),
        ("Settings_count_delete", "DELETE", "- 1", "count"),
        ("Settings_size_insert", "INSERT", "+ NEW.size", "size"),
        ("Settings_size_update", "UPDATE", "+ NEW.size - OLD.size", "size"),
        ("Settings_size_delete", "DELETE", "- OLD.size", "size"),
    )
}
_SCHEMA: tuple[tuple[str, str, str, str | None], ...] = (
    ("table", "Settings", "Settings", "CREATE TABLE Settings ( key TEXT NOT NULL UNIQUE, value)"),
    ("index", "sqlite_autoindex_Settings_1", "Settings", None),
    (
        "table",
        "Cache",
        "Cache",
        "CREATE TABLE Cache ( rowid INTEGER PRIMARY KEY, key BLOB, raw INTEGER, store_time REAL, expire_time REAL,"
        " access_time REAL, access_count INTEGER DEFAULT 0, tag BLOB, size INTEGER DEFAULT 0,"
        " mode INTEGER DEFAULT 0, filename TEXT, value BLOB)",
    ),
    ("index", "Cache_key_raw", "Cache", "CREATE UNIQUE INDEX Cache_key_raw ON Cache(key, raw)"),
    ("index", "Cache_expire_time", "Cache", "CREATE INDEX Cache_expire_time ON Cache (expire_time)"),
    *(("trigger", name, "Cache", sql) for name, sql in _TRIGGERS.items()),
)
SCHEMA = frozenset(_SCHEMA)  # as in sqlite_master: type, name, table, text
STATEMENTS = tuple(sql for *_, sql in _SCHEMA if sql is not None)  # in an order in which they can be executed
REPLACE_TRIGGERS = tuple(
    statement for name, sql in _TRIGGERS.items() for statement in (f"DROP TRIGGER IF EXISTS {name}", sql)
)
_OLD_TRIGGERS = {sql.replace("'", '"'): sql for sql in _TRIGGERS.values()}

_UNLIMITED = 1 << 62  # bytes

# diskcache applies the settings that it finds in a database, so all of its settings are written and checked.
# Later versions must accept these values: vectors in a folder that fails the check must be embedded again.
SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "none",  # diskcache's default evicts above 1 GiB
    "size_limit": _UNLIMITED,
    "cull_limit": 0,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 8192,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,  # a truncated mapped file kills the process; mapping saves only 1 to 3 us per vector
    "sqlite_synchronous": 1,  # NORMAL: survives a killed process, but not a power cut
    "disk_min_file_size": _UNLIMITED,
    "disk_pickle_protocol": 0,
}
COUNTERS = ("count", "size", "hits", "misses")


def schema_mismatch(connection: sqlite3.Connection) -> str | None:
    """Return the reason why a database was not created by this library. None if schema and settings match.

    Vectors are not checked here, but when they are read.

    Raises:
        sqlite3.Error: It cannot be read, or is not a database.
    """
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 100").fetchall()
    current = {(*entry, _OLD_TRIGGERS.get(sql, sql)) for *entry, sql in found}
    if len(found) != len(SCHEMA) or current != SCHEMA:
        return "unexpected or missing tables, views or triggers"
    rows = connection.execute("SELECT key, value FROM Settings LIMIT 100").fetchall()
    settings = dict(rows)
    if len(rows) != len(settings) or settings.keys() != SETTINGS.keys() | set(COUNTERS):
        return "unexpected or missing settings"
    if any(type(settings[name]) is not type(value) or settings[name] != value for name, value in SETTINGS.items()):
        return "settings with unexpected values"
    if any(type(settings[name]) is not int for name in COUNTERS):
        return "counters that are not numbers"
    return None


def has_old_triggers(connection: sqlite3.Connection) -> bool:
    """Return True if a trigger has a string in double quotes. Raises sqlite3.Error."""
    found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' LIMIT 100").fetchall()
    return any(sql in _OLD_TRIGGERS for (sql,) in found)
