"""A new database, made by diskcache. Imported where one is made, and only there."""

# ruff: noqa: ARG002 - the signatures are diskcache's

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_RAW, UNKNOWN

from embedkit_core.cache.disk.folder import DATABASE
from embedkit_core.cache.disk.schema import SETTINGS

# Measured with 1536 dimensions, 256 vectors a transaction, on a local SSD: pages of 4096 take 62 us and 8.3 kB a
# vector, 8192: 56 us, 16384: 42 us, 32768: 36 us and 6.6 kB. Reads are alike (6 to 9 us). A commit of one vector alone
# takes 184 us rather than 78, once for each new query.
PAGE_BYTES = 32768


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """What lets diskcache open our folder: bytes in, bytes out, nothing unpickled, no file opened or deleted.

    diskcache's own class unpickles what a row says is a pickle and opens the file a row names (CVE-2025-69872).
    """

    def put(self, key: object) -> tuple[memoryview, bool]:
        """Give the columns of a key. Raises TypeError for what is not bytes."""
        return sqlite3.Binary(_only_bytes(key)), True

    def get(self, key: object, raw: object) -> bytes:
        """Give the key of a row. Raises TypeError for what is not bytes."""
        return _only_bytes(key)

    def store(self, value: object, read: bool, key: object = UNKNOWN) -> tuple[int, int, None, memoryview]:
        """Give the columns of a value, always in the database. Raises TypeError for what is not bytes."""
        return 0, MODE_RAW, None, sqlite3.Binary(_only_bytes(value))

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        """Give the value of a row. Raises OSError, which diskcache takes for a miss, for any but plain bytes."""
        if mode != MODE_RAW or filename is not None or type(value) is not bytes:
            raise OSError("not a value of this cache")
        return value

    def filename(self, key: object = UNKNOWN, value: object = UNKNOWN) -> tuple[str, str]:
        """Refuse: no value has a file of its own."""
        raise OSError("this cache keeps no files")

    def remove(self, file_path: object) -> None:
        """Remove nothing: a file named by a row is not ours."""


def create(own: Path) -> None:
    """Make the folder of a cache, whole or not at all; one that another process has just made is left as it is.

    Raises:
        OSError, sqlite3.Error, diskcache.Timeout: it cannot be made.
    """
    own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{own.name}.new-", dir=own.parent))  # 0700
    try:
        _fill(new)
        with contextlib.suppress(OSError):
            own.rmdir()  # an empty one is in the way where folders cannot be renamed over
        try:
            new.rename(own)
        except OSError:
            if not (own / DATABASE).exists():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / DATABASE, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = wal")
    settings: dict[str, Any] = dict(SETTINGS)
    diskcache.Cache(str(folder), disk=RawDisk, **settings).close()
    (folder / DATABASE).chmod(0o600)


def _only_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"this cache holds bytes, not {type(value).__name__}")
    return value
