"""Stores of a framework, with keys of text, as stores of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from embedkit_core.cache.bytes_cache import BytesCache

__all__ = ["BytesCache", "HexKeys", "TextKeyStore"]


class TextKeyStore(Protocol):
    """A store of bytes under keys of text."""

    def mget(self, keys: Sequence[str]) -> Sequence[object]:
        """Return a value for each key; None if there is none."""
        ...

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store values."""
        ...


class HexKeys:
    """A store of bytes over a store with keys of text: a key is written in hexadecimal digits."""

    def __init__(self, store: TextKeyStore) -> None:
        self._store = store

    def mget(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return a value for each key; None for a miss."""
        return self._store.mget([key.hex() for key in keys])

    def mset(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store values."""
        self._store.mset([(key.hex(), value) for key, value in items])

    def close(self) -> None:
        """Do nothing: the store belongs to the user, and has no method to close it."""
