"""What a database of ours holds besides vectors, to the letter; whatever differs was not made by us."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

# Written by diskcache 5.6.3 (`Cache.__init__`). A release that writes another schema fails our tests before it ships.
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

_NEVER = 1 << 62  # bytes: a size that is never reached

# diskcache obeys these rows, whoever wrote them, so every one is given at the start and checked ever after.
# A later version of ours must go on accepting these values: a folder that fails the check is paid for again.
SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "none",  # diskcache's own default throws away vectors beyond 1 GiB
    "size_limit": _NEVER,
    "cull_limit": 0,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 8192,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,  # a mapped file that is cut short kills the process; a map saves 1 to 3 us a vector
    "sqlite_synchronous": 1,  # NORMAL: survives a killed process, not a power cut
    "disk_min_file_size": _NEVER,
    "disk_pickle_protocol": 0,
}
_COUNTERS = frozenset({"count", "size", "hits", "misses"})


def schema_mismatch(connection: sqlite3.Connection) -> str | None:
    """Say what in a database we did not make, None where all is ours; values are judged when they are read.

    Raises:
        sqlite3.Error: it cannot be read, or is no database.
    """
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master LIMIT 100").fetchall()
    if len(found) != len(SCHEMA) or set(found) != SCHEMA:
        return "it has tables, views or triggers that are not ours, or lacks some"
    rows = connection.execute("SELECT key, value FROM Settings LIMIT 100").fetchall()
    settings = dict(rows)
    if len(rows) != len(settings) or settings.keys() != SETTINGS.keys() | _COUNTERS:
        return "it has settings that are not ours, or lacks some"
    if any(type(settings[name]) is not type(value) or settings[name] != value for name, value in SETTINGS.items()):
        return "its settings have other values than ours"
    if any(type(settings[name]) is not int for name in _COUNTERS):
        return "its counters are not numbers"
    return None
