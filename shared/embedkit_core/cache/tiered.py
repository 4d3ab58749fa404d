"""Cache of an embedder: a memory tier for queries in front of a cache, or no cache."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from embedkit_core.cache import urls
from embedkit_core.cache.memory import MemoryTier
from embedkit_core.cache.opening import default_folder, open_cache, open_folder
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.types import Cache, Entry
from embedkit_core.common.vectors import NUMPY_DTYPES

logger = logging.getLogger("embedkit_core")

MAX_MEMORY_KEYS = 16  # look-ups of more keys are bulk work, which would displace the queries in memory
CACHED_DTYPES = frozenset(NUMPY_DTYPES.values())
Found: TypeAlias = Mapping[bytes, Entry]


@runtime_checkable
class BlockReads(Protocol):
    """A built-in cache that can return a large read in blocks, to limit memory."""

    def get_blocks(self, keys: Sequence[bytes]) -> Iterator[Found]:
        """Yield the entries that are in the cache, block by block."""
        ...


class TieredCache:
    """A cache with a memory tier in front of it.

    Args:
        cache: The cache. None for no cache; then there is no memory tier either.
        trusted: True for a built-in cache. Entries of other caches are validated.
        owned: True if `close` closes the cache too.

    Attributes:
        backend: The cache that the engine writes to. None for no cache.
    """

    def __init__(self, cache: Cache | None, *, trusted: bool = True, owned: bool = True) -> None:
        self.backend = cache
        self._trusted = trusted
        self._owned = owned
        self._logged_failure = False
        self._get_blocks: Callable[[Sequence[bytes]], Iterator[Found]] | None = None
        if trusted and isinstance(cache, BlockReads):
            self._get_blocks = cache.get_blocks
        self._memory = MemoryTier() if cache is not None else None

    @property
    def may_block(self) -> bool:
        """True if a look-up may take long: a cache that is not built in may use a network."""
        return not self._trusted

    @property
    def folder(self) -> Path | None:
        """The folder of a built-in cache, which other processes may use too. None for another cache, or none."""
        return getattr(self.backend, "folder", None) if self._trusted else None

    def from_memory(self, keys: Sequence[bytes]) -> Found:
        """Return the entries that are in memory; none for bulk look-ups."""
        if self._memory is None or len(keys) > MAX_MEMORY_KEYS:
            return {}
        return self._memory.get_many(keys)

    def read(self, keys: Sequence[bytes], *, hot: bool) -> Iterator[Found]:
        """Yield the entries that are in the cache, block by block; `hot` ones are copied into memory."""
        for found in self._read(keys):
            if hot and len(keys) <= MAX_MEMORY_KEYS:
                self.remember(found)
            yield found

    def remember(self, found: Found) -> None:
        """Copy entries into memory, unless there are too many to be queries."""
        if self._memory is not None and len(found) <= MAX_MEMORY_KEYS:
            for key, entry in found.items():
                self._memory.put(key, entry)

    def _read(self, keys: Sequence[bytes]) -> Iterator[Found]:
        if self.backend is None:
            return
        try:
            if self._get_blocks is not None:
                yield from self._get_blocks(keys)
                return
            found = self.backend.get_many(keys)
            yield found if self._trusted else {key: entry for key, entry in found.items() if _is_valid(entry)}
        except Exception as error:  # a third-party cache may raise anything, and must not fail the call
            if not self._logged_failure:
                self._logged_failure = True
                logger.warning("Cache could not be read (%s); further failures are not logged.", type(error).__name__)

    def where(self, key: bytes) -> str:
        """Return where a vector would come from: "memory", "cache" or "provider"."""
        if self.backend is None or self._memory is None:
            return "provider"
        if self._memory.get(key) is not None:
            return "memory"
        return "cache" if any(self._read([key])) else "provider"

    def close(self) -> None:
        """Clear the memory tier and close the cache if it is owned; other users of the folder open it again."""
        if self._memory is not None:
            self._memory = MemoryTier()
        if self.backend is not None and self._owned:
            self.backend.close()


def _has_methods(cache: object) -> bool:
    try:
        return all(callable(getattr(cache, name, None)) for name in ("get_many", "set_many", "close"))
    except Exception:  # as a diskcache.FanoutCache raises
        return False


def _is_diskcache(cache: object) -> bool:
    """Return True for a `diskcache.Cache`, without an import of diskcache."""
    return isinstance(cache, getattr(sys.modules.get("diskcache"), "Cache", ()))


def _is_valid(entry: object) -> bool:
    if not isinstance(entry, Entry) or not isinstance(entry.vector, np.ndarray):
        return False
    vector = entry.vector
    return vector.dtype in CACHED_DTYPES and vector.ndim == 1 and vector.size > 0 and bool(np.isfinite(vector).all())


def open_tiered(cache: Literal[False] | str | PathLike[str] | Cache | None) -> TieredCache:
    """Return the cache for the argument `cache=` of an embedder. A folder is created at the first write.

    Raises:
        ConfigurationError: The argument is not a cache, or a diskcache.Cache that would unpickle values.
    """
    check_cache(cache)
    if cache is False:
        return TieredCache(None)
    if cache is None:
        return TieredCache(open_cache(default_folder()))
    if isinstance(cache, str) and (scheme := urls.scheme_of(cache)):
        return TieredCache(urls.open_url(cache), trusted=urls.is_built_in_scheme(scheme))
    if isinstance(cache, (str, PathLike)):
        return TieredCache(open_folder(cache))
    if _is_diskcache(cache):
        store = import_module("embedkit_core.cache.raw_disk").DiskcacheStore(cache)
        bytes_cache = import_module("embedkit_core.cache.bytes_cache").BytesCache(store)
        return TieredCache(bytes_cache, trusted=False, owned=False)
    return TieredCache(cache, trusted=False, owned=False)


def check_cache(cache: object) -> None:
    """Check that a `cache` argument has a type that `open_tiered` accepts, without opening anything.

    Raises:
        ConfigurationError: It has not.
    """
    if isinstance(cache, (str, PathLike)) and not str(cache):
        raise ConfigurationError("cache: must not be empty. Use cache=False for no cache.")
    if cache is True:
        raise ConfigurationError("cache: must not be True. Omit it for the default folder, or pass a folder.")
    if cache is None or cache is False or isinstance(cache, (str, PathLike)) or _is_diskcache(cache):
        return
    if not _has_methods(cache):
        raise ConfigurationError(
            "cache: must be a folder, an address (scheme://...), False, None, or an object with get_many, set_many "
            f"and close (got {cache!r:.80})"
        )
