"""Cache in a byte store of LangChain."""

from __future__ import annotations

from langchain_core.stores import BaseStore, ByteStore

from embedkit_core import ConfigurationError
from embedkit_core.adapters.byte_stores import BytesCache, HexKeys


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
        super().__init__(HexKeys(store))
