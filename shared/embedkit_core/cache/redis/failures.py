"""Failures of a Redis server, as errors that say what to do and never show a key, a value or a password."""

from __future__ import annotations

import re
import ssl

import redis.exceptions as theirs

from embedkit_core.cache.redis.address import PASSWORD, USERNAME
from embedkit_core.common.errors import EmbedKitError

_NO_DATABASE = ("DB index is out of range", "invalid DB index")
_COMMAND = re.compile(r"'([a-z|]{2,30})' command")  # in the message of a refusal


class RedisAccessError(EmbedKitError):
    """A Redis server cannot be used.

    Attributes:
        is_logged: True if the log has it already.
    """

    def __init__(self, message: str, *, is_logged: bool = False) -> None:
        super().__init__(message)
        self.is_logged = is_logged


def reason_of(error: Exception, answer_seconds: float) -> str:
    """Return why an operation failed, and what to do.

    Args:
        error: An exception of the client library, or an OSError.
        answer_seconds: The time that the server had to answer.
    """
    text = str(error)
    if isinstance(error, (theirs.AuthenticationError, theirs.AuthenticationWrongNumberOfArgsError)) or text.startswith(
        ("NOAUTH", "WRONGPASS")
    ):
        return (
            f"it refuses the user or the password. Set {USERNAME} and {PASSWORD} in the environment, or pass a "
            "redis.Redis object"
        )
    if isinstance(error, theirs.NoPermissionError):
        command = _COMMAND.search(text)
        what = f"the command {command[1]}" if command else "a command or a key"
        return f"its user has no right to use {what}. Give it the rights that docs/sharing-a-cache.md lists"
    if isinstance(error, theirs.ReadOnlyError):
        return "it is a read-only replica. Use the address of the primary"
    if isinstance(error, theirs.OutOfMemoryError) or text.startswith("OOM"):
        return "its memory is full. Raise maxmemory, set ttl_days=, or choose an eviction policy"
    if text.startswith(_NO_DATABASE):
        return "it has no database of this number. Use a smaller one, such as redis://host:6379/0"
    if isinstance(error, theirs.BusyLoadingError):
        return "it is loading its data"
    if isinstance(error, (theirs.ClusterError, theirs.AskError)) or text.startswith(("MOVED", "CROSSSLOT")):
        return "it is a Redis Cluster, which is not supported. Use a server with one primary"
    if isinstance(error, (theirs.TimeoutError, TimeoutError)):
        return f"it did not answer within {answer_seconds} s"
    if isinstance(error, (theirs.ConnectionError, OSError)):
        return _connection_reason(error)
    return f"it answered with an error ({type(error).__name__})"


def _connection_reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({cause.verify_message}). Use the host name in the certificate, set "
                "SSL_CERT_FILE to the certificate of its authority, or pass a redis.Redis object"
            )
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed ({type(cause).__name__}). Check the certificate, or pass a redis.Redis object"
        if isinstance(cause, OSError):
            return f"it cannot be reached ({type(cause).__name__}). Check that it runs, and its address"
        cause = cause.__cause__ or cause.__context__
    return "it closed the connection"


def is_down(error: Exception) -> bool:
    """Return True if other operations on the server would fail too."""
    return isinstance(
        error,
        (theirs.ConnectionError, theirs.TimeoutError, OSError, theirs.AuthenticationWrongNumberOfArgsError),
    ) or str(error).startswith(("NOAUTH", "WRONGPASS", "MASTERDOWN", "MOVED", *_NO_DATABASE))


def is_lost_connection(error: Exception) -> bool:
    """Return True if the connection was lost, and a new one may work at once."""
    return type(error) is theirs.ConnectionError or isinstance(error, (ConnectionError, BrokenPipeError))
