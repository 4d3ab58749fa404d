"""Cache in a byte store of LangChain."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.stores import BaseStore, ByteStore

from embedkit_core import ConfigurationError
from embedkit_core.cache import BytesCache


class ByteStoreCache(BytesCache):
    """A cache in a `ByteStore` of LangChain, such as `LocalFileStore` or a store of `langchain_community`.

    A key is the hexadecimal cache key, and a value the built-in format of vectors with its checksum: a damaged or
    truncated value is a miss, and nothing is unpickled.

    Example:
        >>> cache = ByteStoreCache(LocalFileStore("folder"))
        >>> embeddings = EmbedKitEmbeddings(model="text-embedding-3-small", cache=cache)
    """

    def __init__(self, store: ByteStore) -> None:
        """Create a cache.

        Args:
            store: The store, which stays the user's: it is not closed.

        Raises:
            ConfigurationError: It is not a store of LangChain.
        """
        if not isinstance(store, BaseStore):
            raise ConfigurationError(
                f"store: must be a ByteStore of LangChain (got {type(store).__name__}). Pass for example "
                "LocalFileStore('folder'); for another store of bytes, use embedkit_core.cache.BytesCache."
            )
        super().__init__(_HexKeys(store))


class _HexKeys:
    """A store of bytes in a store of LangChain, whose keys are text: a key is written in hexadecimal digits."""

    def __init__(self, store: ByteStore) -> None:
        self._store = store

    def mget(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return a value for each key; None for a miss."""
        return self._store.mget([key.hex() for key in keys])

    def mset(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store values."""
        self._store.mset([(key.hex(), value) for key, value in items])

    def close(self) -> None:
        """Do nothing: the store belongs to the user, and has no method to close it."""
