"""Connections to a Redis database, with timeouts of our own and a circuit breaker.

The defaults of the client library let one call to a server that hangs take up to a minute.
"""

from __future__ import annotations

import contextlib
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
    from redis.exceptions import NoScriptError, ReadOnlyError
    from redis.retry import Retry
except ModuleNotFoundError:
    raise MissingExtraError("A redis:// address", "redis") from None

from embedkit_core.cache.redis.failures import RedisAccessError, is_down, is_lost_connection, reason_of

T = TypeVar("T")
logger = logging.getLogger("embedkit_core.cache")

# Two operations can fail one after the other before the circuit breaker opens: together at most 2.5 s.
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 1.2
IDLE_SECONDS = 30.0  # a connection that was not used for so long is closed: a firewall may have dropped it
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0  # seconds between two probes of a server that is down
_STABLE_SECONDS = 60.0  # a failure within this time after another one belongs to the same outage
_OURS: dict[str, Any] = {
    "max_connections": 2**31,  # one for each thread that uses one at a time
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
    that a server that hangs delays a run only once. If a server fails again soon after it has answered a probe, the
    pauses grow on, and the log has it only once. A forked child opens connections of its own.

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
        self._failed_at = float("-inf")
        self._pause = 0.0  # of the last probe
        self._logged: str | None = None  # the failure of this outage that was logged last
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
        known_failure = self._failure  # another thread may reset it
        if known_failure is not None:
            raise RedisAccessError(known_failure, is_logged=True)
        is_retry = False
        while True:
            try:
                result = operation(self._opened())
            except NoScriptError:
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
            if isinstance(error, ReadOnlyError):  # after a failover, its name may have another address
                self.close()
            return RedisAccessError(reason)
        with self._lock.lock:
            if self._failure is None:
                self._open_circuit(reason)
        return RedisAccessError(reason, is_logged=True)

    def _open_circuit(self, reason: str) -> None:
        """Make operations fail until a probe succeeds. Log it, unless the log has it for this outage."""
        now = time.monotonic()
        if now - self._failed_at > _STABLE_SECONDS:
            self._pause, self._logged = 0.0, None
        self._failed_at = now
        probe = _Probe(self, self._next_pause())
        # First, and before anything that an interrupt or a user's log handler could keep from happening.
        with contextlib.suppress(EmbedKitError):  # no thread can be started: the next operation tries again
            start_thread(probe.run, "embedkit-redis-probe")
            self._probe, self._failure = probe, reason
        if reason != self._logged:
            self._logged = reason
            with contextlib.suppress(Exception):  # a user's log handler may raise
                logger.warning(
                    "%s Until it answers again, its vectors are cache misses, and processes that coordinate by it go "
                    "on alone: texts may be paid for more than once, and named budgets refuse.",
                    reason,
                )

    def _next_pause(self) -> float:
        self._pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * self._pause))
        return self._pause

    def _answers(self) -> bool:
        """Return True if the server answers; then the circuit breaker is closed."""
        try:
            client = self._opened()
            client.connection_pool.disconnect(inuse_connections=False)
            client.ping()
        except (redis.RedisError, OSError) as error:
            if is_down(error):  # a refusal, as of a user without the right to ping, is an answer
                return False
        self._failure = None
        logger.info("Redis %s answers again.", self.name)
        return True


class _Probe:
    """The thread that waits for a server to answer again. It ends with the connection."""

    def __init__(self, connection: RedisConnection, pause: float) -> None:
        self._connection = weakref.ref(connection)
        self._pause = pause

    def run(self) -> None:
        pause = self._pause
        while True:
            time.sleep(pause)
            connection = self._connection()
            if connection is None or connection._probe is not self or connection._answers():
                return
            pause = connection._next_pause()
            del connection  # not kept alive during the pause


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
                name, lambda: redis.ConnectionPool(pool.connection_class, **kwargs | ours)
            )
        return connection


def _pool_of_address(address: RedisAddress) -> redis.ConnectionPool:
    settings: dict[str, Any] = {"host": address.host, "port": address.port, "db": address.database}
    if os.environ.get(USERNAME) or os.environ.get(PASSWORD):
        settings["credential_provider"] = _Environment()
    if address.tls:
        settings |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    kind = redis.SSLConnection if address.tls else redis.Connection
    return redis.ConnectionPool(kind, **settings | _OURS)
