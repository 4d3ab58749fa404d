"""Creation of a database with diskcache. Imported only when a database is created, as diskcache is slow to import."""

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

# Measured with 1536 dimensions, 256 vectors per transaction, on a local SSD: 4096-byte pages take 62 us and 8.3 kB per
# vector, 8192: 56 us, 16384: 42 us, 32768: 36 us and 6.6 kB. Reads take 6 to 9 us with all of them. The commit of a
# single vector, as for a new query, takes 184 us instead of 78.
PAGE_BYTES = 32768


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Storage class for diskcache that accepts only bytes: it unpickles nothing, and opens or deletes no files.

    diskcache's default class unpickles values and opens files that a row refers to (CVE-2025-69872).
    """

    def put(self, key: object) -> tuple[memoryview, bool]:
        """Return the columns of a key. Raises TypeError if it is not bytes."""
        return sqlite3.Binary(_only_bytes(key)), True

    def get(self, key: object, raw: object) -> bytes:
        """Return the key of a row. Raises TypeError if it is not bytes."""
        return _only_bytes(key)

    def store(self, value: object, read: bool, key: object = UNKNOWN) -> tuple[int, int, None, memoryview]:
        """Return the columns of a value. Raises TypeError if it is not bytes."""
        return 0, MODE_RAW, None, sqlite3.Binary(_only_bytes(value))

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        """Return the value of a row. Raises OSError, a miss for diskcache, if it is not plain bytes in the row."""
        if mode != MODE_RAW or filename is not None or type(value) is not bytes:
            raise OSError("Row has a value that is not of this cache.")
        return value

    def filename(self, key: object = UNKNOWN, value: object = UNKNOWN) -> tuple[str, str]:
        """Raise OSError, because values are never stored in files."""
        raise OSError("This cache stores no files.")

    def remove(self, file_path: object) -> None:
        """Do nothing: a file that a row refers to does not belong to the cache."""


def create(folder: Path) -> None:
    """Create the folder of a cache atomically; keep one that another process created meanwhile.

    Raises:
        OSError, sqlite3.Error, diskcache.Timeout: It cannot be created.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))  # 0700
    try:
        _fill(new)
        with contextlib.suppress(OSError):
            folder.rmdir()  # some systems cannot rename over an empty folder
        try:
            new.rename(folder)
        except OSError:
            if not (folder / DATABASE).exists():
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
        raise TypeError(f"Keys and values must be bytes (got {type(value).__name__}).")
    return value
