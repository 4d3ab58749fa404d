"""Access to one cache: reads block by block that never fail, and writes by one thread at a time."""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import Cache, Entry
from embedkit_core.common.vectors import NUMPY_DTYPES, VectorSpace

if TYPE_CHECKING:
    from embedkit_core.cache.redis.connection import RedisConnection

logger = logging.getLogger("embedkit_core.cache")

CACHED_DTYPES = frozenset(NUMPY_DTYPES.values())
Found: TypeAlias = Mapping[bytes, Entry]
Items: TypeAlias = Sequence[tuple[bytes, Entry]]

_write_locks: weakref.WeakValueDictionary[int, ForkLock] = weakref.WeakValueDictionary()
_lock = ForkLock()


@runtime_checkable
class BlockReads(Protocol):
    """A built-in cache that can return a large read in blocks, to limit memory."""

    def get_blocks(self, keys: Sequence[bytes]) -> Iterator[Found]:
        """Yield the entries that are in the cache, block by block."""
        ...


@runtime_checkable
class SyncedCache(Protocol):
    """A built-in cache whose commits survive a killed process, and a power cut once they are synced."""

    def sync(self) -> None:
        """Write all commits to the disk. Raises CacheError if it cannot."""
        ...


class DeferredWrites(ABC):
    """A built-in cache of several, whose rows this process can read before other machines can.

    Attributes:
        tiers: The caches.
    """

    tiers: Sequence[OpenCache]

    @abstractmethod
    def read(self, keys: Sequence[bytes], space: VectorSpace | None) -> Iterator[Found]:
        """Yield the entries that are in the cache, block by block. `space` is that of the keys, if it is known."""

    @abstractmethod
    def set_many_then(self, items: Items, done: Callable[[], None]) -> None:
        """Store entries where this process reads first, and in the background wherever else they belong.

        Args:
            items: The entries.
            done: Called on any thread as soon as all machines can read them, or cannot because a write failed.
        """

    @abstractmethod
    def flush(self, timeout: float) -> None:
        """Wait until the background work is done, for up to `timeout` seconds."""


class OpenCache(NamedTuple):
    """A cache that an argument `cache=` names.

    Attributes:
        cache: The cache.
        trusted: True for a built-in cache. Entries of other caches are validated.
        owned: True if closing an embedder closes it.
    """

    cache: Cache
    trusted: bool = True
    owned: bool = True

    @property
    def may_block(self) -> bool:
        """True if a look-up may take long: it uses a network, or may do so because it is not built in."""
        return not self.trusted or bool(getattr(self.cache, "may_block", False))

    @property
    def tiers(self) -> Sequence[OpenCache]:
        """The caches of a list, in the order in which they are read; else the cache itself."""
        return self.cache.tiers if isinstance(self.cache, DeferredWrites) else (self,)

    @property
    def folder(self) -> Path | None:
        """The folder of a built-in cache, which the processes of this machine share. None for another cache."""
        return getattr(self.cache, "folder", None) if self.trusted else None

    @property
    def redis_connection(self) -> RedisConnection | None:
        """The connection of a cache in Redis. None for another cache."""
        return getattr(self.cache, "connection", None) if self.trusted else None

    @property
    def write_failures(self) -> int:
        """The number of vectors that a built-in cache could not write; 0 for another cache."""
        counted = getattr(self.cache, "stats", self.cache) if self.trusted else None
        failures: int = getattr(counted, "write_failures", 0)
        return failures


class CacheReader:
    """Reads one cache. A failed read is a cache miss, and is logged once."""

    def __init__(self, cache: OpenCache) -> None:
        self._cache = cache.cache
        self._trusted = cache.trusted
        self._write_lock = _write_lock(cache.cache)  # kept, so that not each write makes one
        self._tiers = cache.cache if isinstance(cache.cache, DeferredWrites) else None
        self._get_blocks: Callable[[Sequence[bytes]], Iterator[Found]] | None = None
        if cache.trusted and isinstance(cache.cache, BlockReads):
            self._get_blocks = cache.cache.get_blocks
        self._logged_failure = False

    def read(self, keys: Sequence[bytes], space: VectorSpace | None = None) -> Iterator[Found]:
        """Yield the entries that are in the cache, block by block. `space` is that of the keys, if it is known."""
        try:
            if self._tiers is not None:
                yield from self._tiers.read(keys, space)
            elif self._get_blocks is not None:
                yield from self._get_blocks(keys)
            else:
                found = self._cache.get_many(keys)
                yield found if self._trusted else {key: entry for key, entry in found.items() if _is_valid(entry)}
        except Exception as error:  # a third-party cache may raise anything, and must not fail the call
            if not self._logged_failure:
                self._logged_failure = True
                logger.warning("Cache could not be read (%s); further failures are not logged.", type(error).__name__)


@contextmanager
def exclusive_writes(cache: Cache) -> Iterator[None]:
    """Hold the lock of a cache: only one thread at a time may call `set_many`."""
    write_lock = _write_lock(cache)
    with write_lock.lock:
        yield


def _write_lock(cache: Cache) -> ForkLock:
    """Return the lock of a cache. What keeps the lock keeps the cache too, so that no other one has its ID."""
    with _lock.lock:
        write_lock = _write_locks.get(id(cache))
        if write_lock is None:
            write_lock = _write_locks[id(cache)] = ForkLock()
        return write_lock


def _is_valid(entry: object) -> bool:
    if not isinstance(entry, Entry) or not isinstance(entry.vector, np.ndarray):
        return False
    vector = entry.vector
    return vector.dtype in CACHED_DTYPES and vector.ndim == 1 and vector.size > 0 and bool(np.isfinite(vector).all())
