"""Where an embedder's vectors are kept: a cache and the hot queries in memory, or nowhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np

from embedkit_core.cache import urls
from embedkit_core.cache.memory import MemoryTier
from embedkit_core.cache.opening import default_folder, open_cache, open_folder
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Cache, Entry
from embedkit_core.common.vectors import NUMPY_DTYPES

logger = logging.getLogger("embedkit_core")

MAX_MEMORY_BYTES = 16  # keys in one look-up that may come from memory: single queries, not bulk
MAX_REMEMBERED_ROWS = frozenset(NUMPY_DTYPES.values())
Found: TypeAlias = Mapping[bytes, Entry]


@runtime_checkable
class BlockReads(Protocol):
    """A cache of ours that need not have all that it reads in memory at once."""

    def get_blocks(self, keys: Sequence[bytes]) -> Iterator[Found]:
        """Give the entries there are, block by block."""
        ...


class TieredCache:
    """A cache with a small memory before it; both may be absent.

    `keeper` is what the engine writes to, None where nothing is kept. A cache that is not `checked` may answer
    anything; one that is not `owned` is for its owner to close.
    """

    def __init__(self, cache: Cache | None, *, checked: bool = True, owned: bool = True) -> None:
        self.backend = cache
        self._checked = checked
        self._owned = owned
        self._complained = False
        self._get_blocks: Callable[[Sequence[bytes]], Iterator[Found]] | None = None
        if checked and isinstance(cache, BlockReads):
            self._get_blocks = cache.get_blocks
        self._memory = MemoryTier() if cache is not None else None

    @property
    def may_block(self) -> bool:
        """Tell whether a look-up may take long: a cache that is not ours may be on a network."""
        return not self._checked

    def from_memory(self, keys: Sequence[bytes]) -> Found:
        """Give the entries that are in memory."""
        if self._memory is None or len(keys) > MAX_MEMORY_BYTES:
            return {}
        return self._memory.get_many(keys)

    def read(self, keys: Sequence[bytes], *, hot: bool) -> Iterator[Found]:
        """Give the entries of the cache, block by block; `hot` ones are kept in memory for the next time."""
        for found in self._read(keys):
            if hot and len(keys) <= MAX_MEMORY_BYTES:
                self.remember(found)
            yield found

    def remember(self, found: Found) -> None:
        """Keep entries in memory for the next time, unless they are too many to be queries."""
        if self._memory is not None and len(found) <= MAX_MEMORY_BYTES:
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
            yield found if self._checked else {key: entry for key, entry in found.items() if _is_sound(entry)}
        except Exception as error:  # a cache may be anybody's, and must not cost an answer
            if not self._complained:
                self._complained = True
                logger.warning("the cache could not be read (%s)", type(error).__name__)

    def where(self, key: bytes) -> str:
        """Say where a vector would be served from: "memory", "cache" or "provider"."""
        if self.backend is None or self._memory is None:
            return "provider"
        if self._memory.get(key) is not None:
            return "memory"
        return "cache" if any(self._read([key])) else "provider"

    def close(self) -> None:
        """Forget what is in memory, and let go of the folder's files; whoever else uses it opens them again."""
        if self._memory is not None:
            self._memory = MemoryTier()
        if self.backend is not None and self._owned:
            self.backend.close()


def _is_sound(entry: object) -> bool:
    if not isinstance(entry, Entry) or not isinstance(entry.vector, np.ndarray):
        return False
    vector = entry.vector
    return (
        vector.dtype in MAX_REMEMBERED_ROWS and vector.ndim == 1 and vector.size > 0 and bool(np.isfinite(vector).all())
    )


def open_tiered(cache: Literal[False] | str | PathLike[str] | Cache | None) -> TieredCache:
    """Open what an embedder's `cache` argument names; a folder is made at the first write."""
    if cache is False:
        return TieredCache(None)
    if cache is None:
        return TieredCache(open_cache(default_folder()))
    if isinstance(cache, str) and (scheme := urls.scheme_of(cache)):
        return TieredCache(urls.open_url(cache), checked=urls.is_built_in(scheme))
    if isinstance(cache, (str, PathLike)):
        if not str(cache):
            raise ConfigurationError("cache='' names no folder; use cache=False for no cache")
        return TieredCache(open_folder(cache))
    if all(callable(getattr(cache, name, None)) for name in ("get_many", "set_many", "close")):
        return TieredCache(cache, checked=False, owned=False)
    raise ConfigurationError(
        f"cache={cache!r:.80} is none of: a folder, an address (scheme://...), False, None, or an object with "
        "get_many, set_many, close"
    )
