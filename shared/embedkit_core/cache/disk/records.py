"""Statements for the maintenance of a database: totals by vector space, reads in the order of the file, deletion."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from embedkit_core.cache.disk.pool import BULK_WAIT_SECONDS, KEYS_PER_SELECT, VALID_VALUE, execute_patiently

_MAX_NAME = 1000  # bytes

# A key of this library. Any other row was not written by it, and could exhaust the memory.
_OWN = "raw = 1 AND typeof(key) = 'blob' AND length(key) = 32"
# The name of a space. Any other text was not written by this library, and could have control characters. SQLite's
# length and GLOB end at a NUL, so the bytes are counted too.
_SPACE = (
    f"CASE WHEN typeof(tag) = 'text' AND length(tag) <= {_MAX_NAME} AND tag NOT GLOB '*[^ -~]*'"
    " AND length(CAST(tag AS BLOB)) = length(tag) THEN tag END"
)
_USED_AT = "CASE WHEN typeof(access_time) = 'real' AND access_time BETWEEN 0 AND 1e11 THEN access_time END"
# Only constants are substituted, never a value.
_TOTALS = f"SELECT {_SPACE}, count(*), total(length(value)), max({_USED_AT}) FROM Cache WHERE {_OWN} GROUP BY 1"  # noqa: S608
_SELECT = f"SELECT rowid, key, value, {_SPACE} FROM Cache WHERE rowid > ? AND {_OWN} AND {VALID_VALUE}"  # noqa: S608


class SpaceTotal(NamedTuple):
    """Vectors of one vector space.

    Attributes:
        space: Name of the space. None for vectors that were written without it.
        vectors: Number of vectors, including damaged ones.
        bytes: Size of the values.
        used_at: Last use, in Unix seconds. None if unknown.
    """

    space: str | None
    vectors: int
    bytes: int
    used_at: float | None


class Row(NamedTuple):
    """One row. Its value is not verified."""

    id: int
    key: bytes
    value: bytes
    space: str | None


class Condition(NamedTuple):
    """A condition of SQL with the values of its parameters."""

    sql: str
    values: tuple[object, ...] = ()


ANY = Condition("1")


def totals(connection: sqlite3.Connection) -> list[SpaceTotal]:
    """Return the totals by vector space, from a scan of the whole database. Raises sqlite3.Error."""
    return [SpaceTotal(space, n, int(size), at) for space, n, size, at in connection.execute(_TOTALS)]


def read(connection: sqlite3.Connection, after: int, space: str | None = None) -> list[Row]:
    """Return up to `KEYS_PER_SELECT` rows after a row ID, of one vector space or of all. Raises sqlite3.Error."""
    condition = ANY if space is None else of_space(space)
    statement = f"{_SELECT} AND {condition.sql} ORDER BY rowid LIMIT ?"
    found = connection.execute(statement, (after, *condition.values, KEYS_PER_SELECT)).fetchall()
    return [Row(*row) for row in found]


def of_space(space: str) -> Condition:
    """Return the condition of the rows of a vector space."""
    return Condition("tag = ?", (space,))


def unused_since(time: float) -> Condition:
    """Return the condition of the rows whose last use is before a time (Unix seconds)."""
    return Condition("access_time < ?", (time,))


def select(connection: sqlite3.Connection, condition: Condition) -> list[int]:
    """Return the IDs of rows. Raises sqlite3.Error."""
    found = connection.execute(f"SELECT rowid FROM Cache WHERE {condition.sql}", condition.values)  # noqa: S608
    return [row_id for (row_id,) in found]


def select_excess(connection: sqlite3.Connection, max_bytes: int) -> list[int]:
    """Return the IDs of the rows that were used least recently and exceed a size of the file. Raises sqlite3.Error.

    The number is an estimate: the size of a row in the file depends on the rows around it.
    """
    pages, free, page_size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    size = (pages - free) * page_size
    if size <= max_bytes:
        return []
    rows = connection.execute("SELECT rowid, length(value) FROM Cache ORDER BY access_time, rowid").fetchall()
    to_free = (size - max_bytes) / size * sum(length or 0 for _, length in rows)
    ids: list[int] = []
    for row_id, length in rows:
        if ids and to_free <= 0:
            break
        ids.append(row_id)
        to_free -= length or 0
    return ids


def delete(connection: sqlite3.Connection, ids: Sequence[int], condition: Condition = ANY) -> int:
    """Delete rows for which a condition still holds, in one transaction; return their number. Raises sqlite3.Error."""
    deleted = 0
    execute_patiently(connection, "BEGIN IMMEDIATE", BULK_WAIT_SECONDS)
    for start in range(0, len(ids), KEYS_PER_SELECT):
        some = ids[start : start + KEYS_PER_SELECT]
        statement = f"DELETE FROM Cache WHERE rowid IN ({','.join('?' * len(some))}) AND {condition.sql}"  # noqa: S608
        deleted += connection.execute(statement, (*some, *condition.values)).rowcount
    connection.execute("COMMIT")
    return deleted


def compact(connection: sqlite3.Connection) -> None:
    """Return the free pages of the file to the file system. Raises sqlite3.Error."""
    execute_patiently(connection, "VACUUM", BULK_WAIT_SECONDS)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
