"""Recognition of clients of the package redis, without importing it. No I/O."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from embedkit_core.common.errors import ConfigurationError


class RedisClient(Protocol):
    """A `redis.Redis`, as far as type checkers need to know it."""

    connection_pool: Any

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and return its reply."""
        ...


def is_redis_client(argument: str, value: object) -> bool:
    """Return True if the value of an argument is a `redis.Redis`.

    Raises:
        ConfigurationError: It is another client of that package.
    """
    if _is_instance(value, "redis.asyncio", "Redis") or _is_instance(value, "redis.asyncio", "RedisCluster"):
        raise ConfigurationError(
            f"{argument}: an asyncio client cannot be used on the threads of this library (got {type(value).__name__} "
            "of redis.asyncio). Pass a redis.Redis; async methods do not block the event loop."
        )
    if _is_instance(value, "redis", "RedisCluster"):
        raise ConfigurationError(
            f"{argument}: a Redis Cluster is not supported (got {type(value).__name__}). Pass a redis.Redis of a "
            "server with one primary."
        )
    return _is_instance(value, "redis", "Redis")


def _is_instance(value: object, module: str, name: str) -> bool:
    return isinstance(value, getattr(sys.modules.get(module), name, ()))
