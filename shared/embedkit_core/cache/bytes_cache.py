"""Cache over a store of bytes: the built-in format of vectors, with a checksum that is bound to the key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from embedkit_core.cache.codec import decode_all, encode_all
from embedkit_core.common.types import Entry


class ByteStore(Protocol):
    """A store of bytes under keys of 32 bytes.

    `mget` is called from any thread, also concurrently; `mset` from one thread at a time, not always the same one.
    """

    def mget(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return a value for each key, in the same order: bytes-like, or None if there is none."""
        ...

    def mset(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store values. They must be durable when this returns."""
        ...

    def close(self) -> None:
        """Close connections and files. The next call opens them again."""
        ...


class BytesCache:
    """A cache in a store of bytes, which needs no knowledge of vectors.

    A value that is damaged, foreign or stored under another key is a miss. Nothing is unpickled.

    Example:
        >>> embedder = Embedder("openai:text-embedding-3-small", cache=BytesCache(MyStore()))
    """

    def __init__(self, store: ByteStore) -> None:
        self._store = store

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are in the store, by key."""
        return decode_all((key, _as_bytes(value)) for key, value in zip(keys, self._store.mget(keys), strict=True))

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Store entries; existing values are replaced.

        Raises:
            ValueError: A vector is not a row of finite numbers. Nothing was written.
        """
        self._store.mset(encode_all(items))

    def close(self) -> None:
        """Close the store. The next call opens it again."""
        self._store.close()


def _as_bytes(value: object) -> object:
    """Return a bytes-like value, which database drivers return too, as bytes; any other value as it is."""
    return bytes(value) if isinstance(value, (bytearray, memoryview)) else value
