"""Exact schema and settings of a cache database. A database that differs was not created by this library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

# Written by diskcache 5.6.3 (`Cache.__init__`). The tests fail with a release of diskcache that writes another schema.
_TRIGGER = (
    "CREATE TRIGGER {} AFTER {} ON Cache FOR EACH ROW BEGIN UPDATE Settings SET value = value {} WHERE key = {}; END"
)
SCHEMA: frozenset[tuple[str, str, str, str | None]] = frozenset(
    {
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
        *(
            ("trigger", name, "Cache", _TRIGGER.format(name, event, change, column))
            for name, event, change, column in (
                ("Settings_count_insert", "INSERT", "+ 1", '"count"'),
                ("Settings_count_delete", "DELETE", "- 1", '"count"'),
                ("Settings_size_insert", "INSERT", "+ NEW.size", '"size"'),
                ("Settings_size_update", "UPDATE", "+ NEW.size - OLD.size", '"size"'),
                ("Settings_size_delete", "DELETE", "- OLD.size", '"size"'),
            )
        ),
    }
)

_UNLIMITED = 1 << 62  # bytes

# diskcache applies the settings that it finds in a database, so all are written at creation and checked afterwards.
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
_COUNTERS = frozenset({"count", "size", "hits", "misses"})


def schema_mismatch(connection: sqlite3.Connection) -> str | None:
    """Return the reason why a database was not created by this library. None if schema and settings match.

    Vectors are not checked here, but when they are read.

    Raises:
        sqlite3.Error: It cannot be read, or is not a database.
    """
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 100").fetchall()
    if len(found) != len(SCHEMA) or set(found) != SCHEMA:
        return "unexpected or missing tables, views or triggers"
    rows = connection.execute("SELECT key, value FROM Settings LIMIT 100").fetchall()
    settings = dict(rows)
    if len(rows) != len(settings) or settings.keys() != SETTINGS.keys() | _COUNTERS:
        return "unexpected or missing settings"
    if any(type(settings[name]) is not type(value) or settings[name] != value for name, value in SETTINGS.items()):
        return "settings with unexpected values"
    if any(type(settings[name]) is not int for name in _COUNTERS):
        return "counters that are not numbers"
    return None
