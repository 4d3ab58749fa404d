"""Addresses of Redis databases, redis://host:port/number or rediss://... for TLS. No I/O."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from embedkit_core.cache.urls import check_secrets
from embedkit_core.common.errors import ConfigurationError

USERNAME, PASSWORD = "RAG_EMBEDKIT_REDIS_USERNAME", "RAG_EMBEDKIT_REDIS_PASSWORD"  # environment variables
_DEFAULT_PORT = 6379
_SECONDS_PER_DAY = 86400
_EXAMPLE = "Use redis://host:6379/0, or rediss://host:6379/0 for TLS"


class RedisAddress(NamedTuple):
    """A database of a Redis server.

    Attributes:
        host: The host.
        port: The port.
        database: The number of the database.
        tls: True if the connection is encrypted.
    """

    host: str
    port: int
    database: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


def parse(address: str, argument: str) -> tuple[RedisAddress, int | None]:
    """Return the database that an address names, and the seconds that vectors are kept there; None for no limit.

    Args:
        address: The address.
        argument: The argument that it was passed as, for errors.

    Raises:
        ConfigurationError: It is not valid, or it contains a user or a password. The message does not show it.
    """
    scheme = address.partition(":")[0].lower()
    check_secrets(address, scheme, argument, f"set {USERNAME} and {PASSWORD} in the environment")
    parts = urlsplit(address)
    number = parts.path.strip("/") or "0"
    if not parts.hostname or not (number.isascii() and number.isdigit()) or parts.fragment:
        raise ConfigurationError(f"{argument}: the {scheme}:// address has no host or no valid database. {_EXAMPLE}.")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ttl = _ttl_seconds(options.pop("ttl_days", None), argument)
    if options:
        raise ConfigurationError(
            f"{argument}: the {scheme}:// address has an unknown parameter. The only one is ttl_days, the days that a "
            "vector is kept: redis://host:6379/0?ttl_days=30. For other settings, pass a redis.Redis object."
        )
    port = _DEFAULT_PORT if parts.port is None else parts.port
    return RedisAddress(parts.hostname, port, int(number), scheme == "rediss"), ttl


def _ttl_seconds(days: str | None, argument: str) -> int | None:
    if days is None:
        return None
    try:
        seconds = int(float(days) * _SECONDS_PER_DAY)
    except (ValueError, OverflowError):
        seconds = 0
    if not 0 < seconds < 2**31:
        raise ConfigurationError(f"{argument}: ttl_days= must be a positive number of days (got {days!r:.40}).")
    return seconds
