"""Error responses of servers, and the errors that are the same for every provider."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedkit_core.common.errors import (
    AuthenticationError,
    BadRequestError,
    BadTextError,
    ProviderError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    UnavailableError,
)
from embedkit_core.providers.http.headers import rate_limit_status, retry_after
from embedkit_core.providers.http.redaction import safe_excerpt, safe_request_id

MAX_MESSAGE = 20_000  # characters of a server message that are searched; texts that it repeats may be longer
REDIRECT_FIX = "which is not followed. Pass the target address as base_url=."


def shorten_message(message: str) -> str:
    """Return the beginning and the end of a long server message, so that searching it does not block the event loop."""
    half = MAX_MESSAGE // 2
    return message if len(message) <= MAX_MESSAGE else f"{message[:half]} {message[-half:]}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Error response of a server.

    Attributes:
        provider: Name of the provider.
        model: Model name sent to the provider.
        status: HTTP status, or that of an error which the server sent with HTTP 200.
        message: Message of the server.
        headers: Response headers with names in lower case.
        texts: Texts of the request, which no error message may repeat.
        secrets: Credentials, which no error message may repeat.
        request_id: The server's id of the request, as it was received.
    """

    provider: str
    model: str
    status: int
    message: str
    headers: Mapping[str, str]
    texts: Sequence[str] = field(repr=False)
    secrets: Sequence[str] = field(repr=False)
    request_id: str | None = None

    @property
    def error_fields(self) -> dict[str, Any]:
        """Arguments of every error made from this response."""
        return {
            "provider": self.provider,
            "model": f"{self.provider}:{self.model}",
            "status": self.status,
            "request_id": safe_request_id(self.request_id, self.secrets),
        }

    @property
    def server_message(self) -> str:
        """Excerpt of the server message that is safe to show, as ": ..." or ""."""
        return self.excerpt(self.message)

    def excerpt(self, text: str) -> str:
        """Return the part of a server text that is safe to show, as ": ..." or ""."""
        return safe_excerpt(text, self.texts, self.secrets)

    def quota(self) -> QuotaError:
        """Return the error for an account without credit."""
        return QuotaError(
            f"Account has no credit left, so there are no retries (HTTP {self.status}){self.server_message}",
            **self.error_fields,
        )

    def rate_limit(self, reason: str = "Too many requests or tokens", *, wait: float | None = None) -> RateLimitError:
        """Return the error for a limit on requests or tokens: per minute, or at the same time.

        Args:
            reason: First part of the message.
            wait: Seconds to wait if there is no retry-after header.
        """
        seconds = retry_after(self.headers, time.time())
        error = RateLimitError(
            f"{reason} (HTTP {self.status}){self.server_message}",
            retry_after=wait if seconds is None else seconds,
            **self.error_fields,
        )
        error.rate_limits = rate_limit_status(self.headers)
        return error

    def unavailable(self) -> UnavailableError:
        """Return the error for a failure of the server."""
        seconds = retry_after(self.headers, time.time())
        message = f"Server failed (HTTP {self.status}){self.server_message}"
        return UnavailableError(message, retry_after=seconds, **self.error_fields)

    def too_large(
        self, reason: str = "Request has too many texts or tokens", *, counts_texts: bool = False
    ) -> RequestTooLargeError:
        """Return the error for a request over a limit; `counts_texts` is True if the limit is on its texts."""
        error = RequestTooLargeError(f"{reason} (HTTP {self.status}){self.server_message}", **self.error_fields)
        error.counts_texts = counts_texts
        return error

    def common_error(self, variable: str | None) -> ProviderError | None:
        """Return the error for a status with one meaning, None if the meaning depends on the message.

        Args:
            variable: Environment variable of the API key.
        """
        if 300 <= self.status < 400:
            return BadRequestError(
                f"Server answered with a redirect (HTTP {self.status}), {REDIRECT_FIX}", **self.error_fields
            )
        if self.status == 402:
            return self.quota()
        if self.status in (401, 403):
            if self.secrets:
                problem, fix = f"API key was refused for {self.model}", "Check api_key="
                others = f" or {variable}." if variable else "."
            else:
                problem, fix = f"Server needs an API key for {self.model}, and no API key was sent", "Pass api_key="
                others = f" or set the environment variable {variable}." if variable else "."
            return AuthenticationError(f"{problem} (HTTP {self.status}). {fix}{others}", **self.error_fields)
        if self.status == 429:
            return self.rate_limit()
        if self.status in (408, 409) or self.status >= 500:
            return self.unavailable()
        return None

    def bad_request(self, fix: str = "", *, field: str = "") -> BadRequestError:
        """Return the error for a request that cannot succeed unchanged.

        Args:
            fix: What to do, as a sentence.
            field: Field of the request that the server names.
        """
        field = self.excerpt(field).replace(": ", " because of its field ", 1)
        message = f"Server refused the request{field} (HTTP {self.status}){self.server_message}"
        return BadRequestError(f"{message.removesuffix('.')}. {fix}" if fix else message, **self.error_fields)

    def bad_text(self) -> BadTextError:
        """Return the error for a request that may have a text that the server does not accept."""
        return BadTextError(
            f"Server refused the request (HTTP {self.status}){self.server_message}", **self.error_fields
        )


# Names of exceptions of httpx, aiohttp, urllib3 and the system: if one is among the causes, no byte was sent.
UNSENT_CAUSES = frozenset({"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "gaierror"})
UNSENT_CAUSES |= {"ClientConnectorError", "ClientConnectorDNSError", "ClientProxyConnectionError"}
UNSENT_CAUSES |= {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}
UNSENT_CAUSES |= {"ConnectionRefusedError", "SSLCertVerificationError", "ClientConnectorCertificateError"}


CHECK_ADDRESS = "Check base_url=."


def connection_error(host: str, failure: BaseException, fix: str, *, through: str = "") -> UnavailableError:
    """Return the error for a server that could not be reached; it is `unsent` if nothing was sent before the failure.

    Args:
        host: Host and port of the requests.
        failure: Exception of the HTTP client, or of TLS while reading.
        fix: What to do, as a sentence, "" if there is no advice.
        through: What the requests go through, such as " through proxy=".
    """
    message = f"Server at {host} could not be reached{through} ({root_cause(failure)})."
    error = UnavailableError(f"{message} {fix}".rstrip())
    cause: BaseException | None = failure
    for _ in range(20):
        if cause is None:
            break
        error.unsent |= type(cause).__name__ in UNSENT_CAUSES
        cause = cause.__cause__ or cause.__context__
    return error


def root_cause(error: BaseException) -> str:
    """Return the first cause of a failed connection, as the operating system's message if there is one."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is not trusted; pass ca_bundle= with trusted certificates"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return type(error).__name__
