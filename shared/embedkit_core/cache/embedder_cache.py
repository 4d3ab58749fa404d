"""Cache of an embedder: a memory tier for queries in front of a cache, or no cache."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os import PathLike
from typing import Literal, TypeAlias

from embedkit_core.cache import urls
from embedkit_core.cache.access import CacheReader, DeferredWrites, Found, OpenCache, SyncedCache
from embedkit_core.cache.memory import MemoryTier
from embedkit_core.cache.opening import (
    CACHE_VARIABLE,
    cache_errors_name,
    default_folder,
    environment_cache,
    open_cache,
    open_folder,
)
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.redis_clients import RedisClient, is_redis_client
from embedkit_core.common.types import Cache, Entry
from embedkit_core.common.vectors import VectorSpace

OneCache: TypeAlias = str | PathLike[str] | Cache | RedisClient  # what names one cache
CacheArgument: TypeAlias = Literal[False] | OneCache | Sequence[OneCache] | None


_open_caches: weakref.WeakValueDictionary[str | int, Cache] = weakref.WeakValueDictionary()
_lock = ForkLock()


class EmbedderCache:
    """A cache with a memory tier in front of it.

    Args:
        cache: The cache. None for no cache; then there is no memory tier either.
        environment: The folder or address, if RAG_EMBEDKIT_CACHE named it.

    Attributes:
        backend: The cache that the engine writes to. None for no cache.
        environment: As the argument.
        memory: Recently used vectors of single queries. None without a cache.
        may_block: True if a look-up may take long, as on a network.
        is_folder: True if the cache is one folder.
    """

    def __init__(self, cache: OpenCache | None, environment: str | None = None) -> None:
        self._opened = cache
        self.environment = environment
        self._reader = None if cache is None else CacheReader(cache)
        self.memory = None if cache is None else MemoryTier()
        self.backend = None if cache is None else cache.cache
        self.may_block = cache is not None and cache.may_block
        self.is_folder = cache is not None and cache.folder is not None

    @property
    def tiers(self) -> Sequence[OpenCache]:
        """The caches behind the memory tier, in the order in which they are read; none without a cache."""
        return () if self._opened is None else self._opened.tiers

    @property
    def description(self) -> str:
        """The folders and addresses of the caches, "none" without a cache, and the environment variable if it was used.

        Other caches are described by their class, since their address may have a secret.
        """
        places = [str(tier.folder or tier.redis_connection or type(tier.cache).__name__) for tier in self.tiers]
        return (", ".join(places) or "none") + f" ({CACHE_VARIABLE})" * (self.environment is not None)

    def read(self, keys: Sequence[bytes], *, hot: bool, space: VectorSpace | None = None) -> Iterator[Found]:
        """Yield the entries that are in the cache, block by block.

        Args:
            keys: The keys.
            hot: True if what is found is copied into memory.
            space: The vector space of the keys, if it is known. With it, a cache of several tiers copies what a lower
                tier has into the tiers above.
        """
        if self._reader is None:
            return
        for found in self._reader.read(keys, space):
            if hot:
                self.remember(found)
            yield found

    def find(self, key: bytes) -> Entry | None:
        """Return the entry of a single query, which is copied into memory. None if the folder lacks it.

        Only for a cache with `is_folder`: its reads do not fail.
        """
        assert self.backend is not None
        found = self.backend.get_many([key])
        self.remember(found)
        return found.get(key)

    def remember(self, found: Found) -> None:
        """Copy entries into memory."""
        if self.memory is not None:
            for key, entry in found.items():
                self.memory.put(key, entry)

    def where(self, key: bytes) -> str:
        """Return where a vector would come from: "memory", "cache" or "provider"."""
        if self._reader is None or self.memory is None:
            return "provider"
        if self.memory.get(key) is not None:
            return "memory"
        return "cache" if any(self._reader.read([key])) else "provider"

    def flush(self, timeout: float) -> None:
        """Wait until all caches of a list have what was written, for up to `timeout` seconds."""
        if isinstance(self.backend, DeferredWrites):
            self.backend.flush(timeout)

    def sync(self) -> None:
        """Write to the disk what built-in caches in folders have received, so that it survives a power cut."""
        for tier in self.tiers:
            if tier.trusted and isinstance(tier.cache, SyncedCache):
                tier.cache.sync()

    def close(self) -> None:
        """Clear the memory tier and close the cache if it is owned; other users of the folder open it again."""
        if self.memory is not None:
            self.memory = MemoryTier()
        if self._opened is not None and self._opened.owned:
            self._opened.cache.close()


def _has_methods(cache: object) -> bool:
    try:
        return all(callable(getattr(cache, name, None)) for name in ("get_many", "set_many", "close"))
    except Exception:  # as a diskcache.FanoutCache raises
        return False


def _is_diskcache(cache: object) -> bool:
    """Return True for a `diskcache.Cache`, without an import of diskcache."""
    return isinstance(cache, getattr(sys.modules.get("diskcache"), "Cache", ()))


def open_embedder_cache(cache: CacheArgument) -> EmbedderCache:
    """Return the cache for the argument `cache=` of an embedder. A folder is created at the first write.

    Raises:
        ConfigurationError: The argument is not a cache, or a diskcache.Cache that would unpickle values.
    """
    check_cache(cache)
    if cache is False:
        return EmbedderCache(None)
    if cache is None:
        if (named := urls.mask_secrets(environment_cache())) is None:
            return EmbedderCache(OpenCache(open_cache(default_folder())))
        with cache_errors_name(CACHE_VARIABLE):
            return EmbedderCache(_open(named), named)
    if isinstance(cache, (list, tuple)):
        tiers = import_module("embedkit_core.cache.tiers")
        return EmbedderCache(OpenCache(tiers.open_tiers([_open(one) for one in cache])))
    return EmbedderCache(_open(cache))  # type: ignore[arg-type]  # a sequence is a list or a tuple


def _open(cache: OneCache) -> OpenCache:
    """Return one cache."""
    if isinstance(cache, str) and (scheme := urls.scheme_of(cache)):
        if not urls.is_built_in_scheme(scheme):
            return OpenCache(urls.open_url(cache), trusted=False)
        return OpenCache(_shared(cache, partial(urls.open_url, cache)))
    if isinstance(cache, (str, PathLike)):
        return OpenCache(open_folder(cache))
    if _is_diskcache(cache):
        store = import_module("embedkit_core.cache.raw_disk").DiskcacheStore(cache)
        bytes_cache = import_module("embedkit_core.cache.bytes_cache").BytesCache(store)
        return OpenCache(bytes_cache, trusted=False, owned=False)
    if is_redis_client("cache", cache):
        connection = import_module("embedkit_core.cache.redis.connection").connection_of(cache, "cache")
        redis_cache = import_module("embedkit_core.cache.redis.cache").RedisCache
        return OpenCache(_shared(id(connection), partial(redis_cache, connection)))
    return OpenCache(cache, trusted=False, owned=False)  # type: ignore[arg-type]  # `check_cache` has checked it


def _shared(key: str | int, make: Callable[[], Cache]) -> Cache:
    """Return the cache with a key; callers with the same address, or the same client, share one."""
    with _lock.lock:
        cache = _open_caches.get(key)
    made = make() if cache is None else cache  # outside of the lock: it imports modules
    with _lock.lock:
        return _open_caches.setdefault(key, made)


def check_cache(cache: object) -> None:
    """Check that a `cache` argument has a type that `open_embedder_cache` accepts, without opening anything.

    Raises:
        ConfigurationError: It has not.
    """
    if isinstance(cache, (list, tuple)):
        _check_tiers(cache)
    elif cache is not None and cache is not False:
        _check_one(cache)


def _check_one(cache: object) -> None:
    if isinstance(cache, (str, PathLike)) and not str(cache):
        raise ConfigurationError("cache: must not be empty. Use cache=False for no cache.")
    if cache is True:
        raise ConfigurationError("cache: must not be True. Omit it for the default folder, or pass a folder.")
    if isinstance(cache, (str, PathLike)) or _is_diskcache(cache) or is_redis_client("cache", cache):
        return
    if not _has_methods(cache):
        raise ConfigurationError(
            "cache: must be a folder, an address (scheme://...), a redis.Redis, False, None, an object with get_many, "
            f"set_many and close, or a list of caches (got {type(cache).__name__})"
        )


def _check_tiers(caches: Sequence[object]) -> None:
    """Check the elements of a list of caches."""
    if len(caches) < 2:
        raise ConfigurationError(
            f"cache: a list must have at least two caches (got {len(caches)}). Pass a single cache without a list."
        )
    for cache in caches:
        if cache is None or cache is False:
            raise ConfigurationError(
                f"cache: a list must not contain {cache}. List the folders and addresses that are to be used."
            )
        if isinstance(cache, (list, tuple)):
            raise ConfigurationError("cache: a list must not contain another list. List all caches in one.")
        _check_one(cache)
