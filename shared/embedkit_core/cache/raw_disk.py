"""Adapter for a `diskcache.Cache` of the user, and the storage class that makes it safe. Imports diskcache."""

# ruff: noqa: ARG002 - the signatures are diskcache's

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

from embedkit_core.common.errors import ConfigurationError, MissingExtraError

try:
    import diskcache
    from diskcache.core import MODE_RAW, UNKNOWN
except ModuleNotFoundError:
    raise MissingExtraError("RawDisk", "diskcache") from None


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Storage class for diskcache that accepts only bytes: it unpickles nothing, and opens or deletes no files.

    diskcache's default class unpickles values and opens files that a row refers to (CVE-2025-69872).

    Example:
        >>> embedder = Embedder(model, cache=diskcache.Cache("folder", disk=RawDisk))
    """

    def put(self, key: object) -> tuple[memoryview, Literal[True]]:
        """Return the columns of a key. Raises TypeError if it is not bytes."""
        return sqlite3.Binary(_only_bytes(key)), True

    def get(self, key: object, raw: object) -> bytes:
        """Return the key of a row. Raises TypeError if it is not bytes."""
        return _only_bytes(key)

    def store(
        self, value: object, read: bool, key: object = UNKNOWN
    ) -> tuple[Literal[0], Literal[1], None, memoryview]:
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


class DiskcacheStore:
    """A `diskcache.Cache` as a store of bytes.

    Raises:
        ConfigurationError: Its `Disk` is not a `RawDisk`, so it would unpickle what is in its folder.
    """

    def __init__(self, cache: Any) -> None:
        if not isinstance(cache.disk, RawDisk):
            raise ConfigurationError(
                f"cache: this diskcache.Cache would unpickle the values in its folder (got {type(cache.disk).__name__} "
                "as its disk). Create it with diskcache.Cache(folder, disk=embedkit_core.cache.RawDisk)."
            )
        self._cache = cache

    def mget(self, keys: Sequence[bytes]) -> list[object]:
        """Return a value for each key; None for a miss."""
        return [self._cache.get(key) for key in keys]

    def mset(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store values in one transaction. Raises diskcache.Timeout if the database stays locked."""
        with self._cache.transact():
            for key, value in items:
                self._cache.set(key, value)

    def close(self) -> None:
        """Close the connection of the calling thread."""
        self._cache.close()


def _only_bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"Keys and values must be bytes (got {type(value).__name__}).")
    return value
