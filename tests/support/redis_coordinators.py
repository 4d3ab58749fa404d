"""Coordinators in Redis, whose owners tests stop."""

from collections.abc import Callable
from typing import Self

from embedkit_core.cache.redis.address import parse
from embedkit_core.cache.redis.connection import RedisConnection, connection_to
from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination.port import LEASE_SECONDS
from embedkit_core.coordination.redis.coordinator import RedisCoordinator
from embedkit_core.coordination.redis.scripts import KEYS, microseconds
from support.redis_server import RedisServer

META, OWNERS, HORIZONS, LEASES, ACTIVE, FORGET, CLAIMS, MODELS, USED, BUDGETS, ATTEMPTS, HOLDS = KEYS


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


class VirtualParticipant(RedisCoordinator):
    """A participant on a virtual clock, which tests kill and cut off, and whose replies they lose.

    Attributes:
        is_reachable: False if every call fails before the server gets it.
        loses_reply: True if the next call that changes leases fails after the server has done it.
    """

    def __init__(self, server: RedisServer, clock: Callable[[], float]) -> None:
        super().__init__(connection(server), clock)
        self.server, self.clock = server, clock
        self.is_reachable, self.loses_reply = True, False

    def process(self) -> Self:
        """Return another participant."""
        return type(self)(self.server, self.clock)

    def kill(self) -> None:
        """Lose what this participant holds, as if its process had been killed long ago."""
        with self.server.client() as client:
            client.zadd(OWNERS, {self._owner: 0}, xx=True)
        self.process().budgets()

    @property
    def has_leases(self) -> bool:
        """True if any participant has an active lease."""
        with self.server.client() as client:
            return bool(client.zcard(ACTIVE))

    def _run(self, operation):
        if not self.is_reachable:
            raise CoordinationError("cut off")
        return super()._run(operation)

    def _ask(self, name, request):
        reply = super()._ask(name, request)
        if self.loses_reply and name == "exchange":
            self.loses_reply = False
            raise CoordinationError("the reply was lost")
        return reply
