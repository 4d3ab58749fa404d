"""Coordinators in Redis, whose owners tests stop."""

from embedkit_core.cache.redis.address import parse
from embedkit_core.cache.redis.connection import RedisConnection, connection_to
from embedkit_core.coordination.port import LEASE_SECONDS
from embedkit_core.coordination.redis.coordinator import RedisCoordinator
from embedkit_core.coordination.redis.scripts import KEYS, microseconds
from support.redis_server import RedisServer

META, OWNERS, HORIZONS, LEASES, ACTIVE, FORGET, CLAIMS, MODELS, USED, BUDGETS, ATTEMPTS = KEYS


def connection(server: RedisServer) -> RedisConnection:
    """Return this process' connection to a server."""
    address, _ = parse(server.address, "coordination")
    return connection_to(address)


def coordinator(server: RedisServer) -> RedisCoordinator:
    """Return a new participant."""
    return RedisCoordinator(connection(server))


def stop(server: RedisServer, stopped: RedisCoordinator) -> None:
    """Set the last sign of life of a participant back, until its leases are lost."""
    with server.client() as client:
        client.zincrby(OWNERS, -microseconds(2 * LEASE_SECONDS), stopped._owner)
    coordinator(server).budgets()
