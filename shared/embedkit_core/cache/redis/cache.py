"""Cache in a Redis database, which several machines share."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from embedkit_core.cache.bytes_cache import BytesCache
from embedkit_core.cache.codec import decode_all
from embedkit_core.cache.redis.address import parse
from embedkit_core.cache.redis.connection import RedisConnection, connection_to
from embedkit_core.cache.redis.failures import RedisAccessError
from embedkit_core.cache.stats import Stats
from embedkit_core.common.types import Entry

if TYPE_CHECKING:
    import redis

KEY_PREFIX = b"embedkit:v1:"  # of each key; a later format has another one
MAX_KEYS_PER_READ = 500
MAX_BYTES_PER_TRIP = 4_000_000  # of a read or a write: a larger one would block the server for other clients

logger = logging.getLogger("embedkit_core.cache")


class RedisStore:
    """A Redis database as a store of bytes.

    Args:
        connection: The connection.
        ttl_seconds: How long a value is kept after it was written. None for no limit.
    """

    def __init__(self, connection: RedisConnection, ttl_seconds: int | None = None) -> None:
        self.connection = connection
        self._ttl_seconds = ttl_seconds

    def mget(self, keys: Sequence[bytes]) -> Sequence[object]:
        """Return a value for each key, None for a miss, in one trip."""
        names = [KEY_PREFIX + key for key in keys]
        return self.connection.run(lambda client: list[object](client.mget(names)))

    def mset(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Store values, replacing existing ones, with a trip for each `MAX_BYTES_PER_TRIP`."""
        start = size = 0
        for end, (_, value) in enumerate(items, 1):
            size += len(value)
            if size >= MAX_BYTES_PER_TRIP or end == len(items):
                self._set(items[start:end])
                start, size = end, 0

    def _set(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        def write(client: redis.Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            for key, value in items:
                pipeline.set(KEY_PREFIX + key, value, ex=self._ttl_seconds)
            for answer in pipeline.execute(raise_on_error=False):
                if isinstance(answer, Exception):
                    raise answer

        self.connection.run(write)

    def close(self) -> None:
        """Close the connections that no thread uses."""
        self.connection.close()


class RedisCache(BytesCache):
    """A cache in a Redis database. A failed read is a cache miss; a failed write is counted and logged once.

    Attributes:
        may_block: True, since a read takes as long as the network and the server.
        stats: Failures in this process.
    """

    may_block = True

    def __init__(self, connection: RedisConnection, ttl_seconds: int | None = None) -> None:
        """Create a cache without a connection.

        Args:
            connection: The connection, which is opened on first use.
            ttl_seconds: How long a vector is kept after it was written. None for no limit.
        """
        super().__init__(RedisStore(connection, ttl_seconds))
        self.connection = connection
        self.stats = Stats()
        self._keys_per_read = MAX_KEYS_PER_READ
        self._logged_failures: set[str] = set()

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are in the cache, by key."""
        found: dict[bytes, Entry] = {}
        for block in self.get_blocks(keys):
            found |= block
        return found

    def get_blocks(self, keys: Sequence[bytes]) -> Iterator[dict[bytes, Entry]]:
        """Yield the entries that are in the cache, trip by trip."""
        start = 0
        while start < len(keys):
            block = keys[start : start + self._keys_per_read]
            start += len(block)
            try:
                values = self._store.mget(block)
            except RedisAccessError as error:
                self._log_once("read", error)
                return
            present = [(key, value) for key, value in zip(block, values, strict=True) if value is not None]
            found = decode_all(present)
            self.stats.damaged += len(present) - len(found)
            if found:
                bytes_per_key = max(entry.vector.nbytes for entry in found.values())
                self._keys_per_read = max(1, min(MAX_KEYS_PER_READ, MAX_BYTES_PER_TRIP // bytes_per_key))
            yield found

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Store entries; existing values are replaced.

        Raises:
            ValueError: A vector is not a row of finite numbers. Nothing was written.
        """
        try:
            super().set_many(items)
        except RedisAccessError as error:
            self.stats.write_failures += len(items)
            self._log_once("written", error)

    def _log_once(self, operation: str, error: RedisAccessError) -> None:
        if not error.is_logged and operation not in self._logged_failures:
            self._logged_failures.add(operation)
            logger.warning("Cache cannot be %s, so texts may be embedded again. %s", operation, error)

    def __repr__(self) -> str:
        return f"RedisCache({self.connection.name!r})"


def open_address(address: str) -> RedisCache:
    """Return the cache at a redis:// or rediss:// address.

    Raises:
        ConfigurationError: The address is not valid.
    """
    database, ttl_seconds = parse(address, "cache")
    return RedisCache(connection_to(database), ttl_seconds)
