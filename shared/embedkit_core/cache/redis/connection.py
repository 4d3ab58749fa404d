"""Connections to a Redis database, with timeouts of our own and a circuit breaker.

The defaults of the client library let one call to a server that hangs take up to a minute.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from embedkit_core.cache.redis.address import PASSWORD, USERNAME, RedisAddress
from embedkit_core.common.errors import ConfigurationError, EmbedKitError, MissingExtraError
from embedkit_core.common.fork_safety import ForkLock, register_after_fork
from embedkit_core.common.threads import start_thread

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError:
    raise MissingExtraError("A redis:// address", "redis") from None

from embedkit_core.cache.redis.failures import RedisAccessError, is_down, is_lost_connection, reason_of

T = TypeVar("T")
logger = logging.getLogger("embedkit_core")

# Two operations can fail one after the other before the circuit breaker opens: together at most 2.5 s.
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 1.2
IDLE_SECONDS = 30.0  # a connection that was not used for so long is closed: a firewall may have dropped it
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0  # seconds between two probes of a server that is down
_OURS: dict[str, Any] = {
    "socket_connect_timeout": CONNECT_SECONDS,
    "socket_timeout": ANSWER_SECONDS,
    "socket_keepalive": True,
    "retry": Retry(NoBackoff(), 0),
    "retry_on_timeout": False,
    "decode_responses": False,
    "protocol": 2,
    "health_check_interval": 0,
}
# Of a client of the user's; those that are not in _OURS depend on its protocol, or on what only it does.
_THEIRS = (
    "retry_on_error",
    "cache",
    "cache_config",
    "event_dispatcher",
    "himport_registry",
    "legacy_responses",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "parser_class",
)


class RedisConnection:
    """Connections of this process to one Redis database.

    After a failure of the server, all operations fail at once until a probe in the background has reached it again, so
    that a server that hangs delays a run only once. A forked child opens connections of its own.

    Attributes:
        name: The address without credentials, for messages.
    """

    def __init__(self, name: str, make_pool: Callable[[], redis.ConnectionPool]) -> None:
        """Create an object without a connection.

        Args:
            name: The address without credentials.
            make_pool: Returns a pool of connections.
        """
        self.name = name
        self._make_pool = make_pool
        self._lock = ForkLock()
        self._client: redis.Redis | None = None
        self._used_at = 0.0
        self._failure: str | None = None
        self._probe: _Probe | None = None
        register_after_fork(self)

    def run(self, operation: Callable[[redis.Redis], T]) -> T:
        """Return what an operation returns. It is repeated once if the connection was lost meanwhile.

        Args:
            operation: Called with a client, whose commands raise what the client library raises.

        Raises:
            RedisAccessError: The server cannot be reached, or refuses the operation.
            redis.exceptions.NoScriptError: The server does not have a script.
        """
        if self._failure is not None:
            raise RedisAccessError(self._failure, is_logged=True)
        is_retry = False
        while True:
            try:
                result = operation(self._opened())
            except redis.exceptions.NoScriptError:
                raise
            except (redis.RedisError, OSError) as error:
                if is_lost_connection(error) and not is_retry:
                    is_retry = True
                    continue
                failure = self._failed(error)
            else:
                self._used_at = time.monotonic()
                return result
            raise failure  # outside of the `except` block: messages of the client library may have keys and values

    def close(self) -> None:
        """Close the connections that no thread uses. The next operation opens new ones, unless the server is down."""
        with self._lock.lock:
            client, self._client = self._client, None
        if client is not None:
            client.connection_pool.disconnect(inuse_connections=False)

    def after_fork_in_child(self) -> None:
        """Forget the parent's connections and its thread."""
        self._client = self._failure = self._probe = None

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"RedisConnection({self.name!r})"

    def _opened(self) -> redis.Redis:
        client = self._client
        if client is None:
            with self._lock.lock:
                if self._client is None:
                    self._client = redis.Redis(connection_pool=self._make_pool())
                return self._client
        if time.monotonic() - self._used_at > IDLE_SECONDS:
            client.connection_pool.disconnect(inuse_connections=False)
        return client

    def _failed(self, error: Exception) -> RedisAccessError:
        """Return the error to raise; if the server is down, open the circuit breaker and log it."""
        reason = f"Redis {self.name} cannot be used: {reason_of(error, ANSWER_SECONDS)}."
        if not is_down(error):
            return RedisAccessError(reason)
        with self._lock.lock:
            is_first = self._failure is None
            if is_first:
                self._failure = reason
                self._probe = probe = _Probe(self)
        if is_first:
            logger.warning(
                "%s Until it answers again, its vectors are cache misses, and processes that coordinate by it go on "
                "alone: texts may be paid for more than once, and named budgets refuse.",
                reason,
            )
            try:
                start_thread(probe.run, "embedkit-redis-probe")
            except EmbedKitError:  # no thread can be started: the next operation tries again
                self._failure = None
        return RedisAccessError(reason, is_logged=True)

    def _answers(self) -> bool:
        """Return True if the server answers; then the circuit breaker is closed."""
        try:
            client = self._opened()
            client.connection_pool.disconnect(inuse_connections=False)
            client.ping()
        except (redis.RedisError, OSError):
            return False
        self._failure = None
        logger.info("Redis %s answers again.", self.name)
        return True


class _Probe:
    """The thread that waits for a server to answer again. It ends with the connection."""

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = weakref.ref(connection)

    def run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            time.sleep(pause)
            connection = self._connection()
            if connection is None or connection._probe is not self or connection._answers():
                return
            del connection  # not kept alive during the pause
            pause = min(_LONGEST_PAUSE, 2 * pause)


class _Environment(redis.CredentialProvider):
    """User and password from the environment, read for each new connection, so that they can be rotated."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        username, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
        if username:
            return username, password or ""
        return (password or "",)


_connections: weakref.WeakValueDictionary[RedisAddress, RedisConnection] = weakref.WeakValueDictionary()
_connections_of_clients: weakref.WeakKeyDictionary[redis.Redis, RedisConnection] = weakref.WeakKeyDictionary()
_lock = ForkLock()


def connection_to(address: RedisAddress) -> RedisConnection:
    """Return the connection to an address; callers with the same address share one."""
    with _lock.lock:
        connection = _connections.get(address)
        if connection is None:
            connection = _connections[address] = RedisConnection(str(address), lambda: _pool_of_address(address))
        return connection


def connection_of(client: redis.Redis, argument: str) -> RedisConnection:
    """Return a connection with the address, credentials and TLS settings of a user's client, which stays its own.

    Timeouts and retries are not taken from it. Callers with the same client share one connection.

    Args:
        client: The client.
        argument: The argument that it was passed as, for errors.

    Raises:
        ConfigurationError: Its connections depend on more than an address, as those of Sentinel.
    """
    pool = client.connection_pool
    kwargs = {name: value for name, value in pool.connection_kwargs.items() if name not in _THEIRS}
    plain = (redis.Connection, redis.UnixDomainSocketConnection)
    if "connection_pool" in kwargs or not issubclass(pool.connection_class, plain):
        raise ConfigurationError(
            f"{argument}: only a redis.Redis with plain, TLS or Unix socket connections is supported (got "
            f"{pool.connection_class.__name__}). Pass a client with the address of the primary."
        )
    path = kwargs.get("path")
    ours = dict(_OURS)
    if path:
        del ours["socket_keepalive"]
        name = f"unix://{path}"
    else:
        tls = issubclass(pool.connection_class, redis.SSLConnection)
        address = RedisAddress(kwargs.get("host", "localhost"), kwargs.get("port", 6379), kwargs.get("db") or 0, tls)
        name = str(address)
    with _lock.lock:
        connection = _connections_of_clients.get(client)
        if connection is None:
            connection = _connections_of_clients[client] = RedisConnection(
                name, lambda: redis.ConnectionPool(pool.connection_class, max_connections=2**31, **kwargs | ours)
            )
        return connection


def _pool_of_address(address: RedisAddress) -> redis.ConnectionPool:
    settings: dict[str, Any] = {"host": address.host, "port": address.port, "db": address.database}
    if os.environ.get(USERNAME) or os.environ.get(PASSWORD):
        settings["credential_provider"] = _Environment()
    if address.tls:
        settings |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    kind = redis.SSLConnection if address.tls else redis.Connection
    return redis.ConnectionPool(kind, max_connections=2**31, **settings | _OURS)
