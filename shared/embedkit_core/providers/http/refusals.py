"""A server's refusal, and the errors that mean the same for every provider."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedkit_core.common.errors import (
    AuthenticationError,
    BadRequestError,
    ProviderError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    UnavailableError,
)
from embedkit_core.providers.http.headers import headroom, retry_after
from embedkit_core.providers.http.redaction import safe_excerpt

REDIRECT_HINT = ", which is not followed; give the address it leads to as base_url="


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a server answered in place of vectors; `headers` have names in lower case."""

    provider: str
    model: str
    status: int
    message: str
    headers: Mapping[str, str]
    texts: Sequence[str] = field(repr=False)
    secrets: Sequence[str] = field(repr=False)
    request_id: str | None = None

    @property
    def where(self) -> dict[str, Any]:
        """What every error says of it."""
        return {
            "provider": self.provider,
            "model": f"{self.provider}:{self.model}",
            "status": self.status,
            "request_id": self.request_id,
        }

    @property
    def server_message(self) -> str:
        """What of the server's text may be shown, as ': ...'."""
        return self.excerpt(self.message)

    def excerpt(self, text: str) -> str:
        """Give what may be shown of a part of it, as ': ...'."""
        return safe_excerpt(text, self.texts, self.secrets)

    def quota(self) -> QuotaError:
        """Give the error for an account that has no credit left."""
        return QuotaError(
            f"the account has no credit left (HTTP {self.status}); waiting does not help{self.server_message}",
            **self.where,
        )

    def rate_limit(
        self, why: str = "too many requests or tokens a minute", *, wait: float | None = None
    ) -> RateLimitError:
        """Give the error for too much at once; `wait` is in seconds, for a provider with headers of its own."""
        asked = retry_after(self.headers, time.time())
        limited = RateLimitError(
            f"{why} (HTTP {self.status})", retry_after=wait if asked is None else asked, **self.where
        )
        limited.rate_limits = headroom(self.headers)
        return limited

    def unavailable(self) -> UnavailableError:
        """Give the error for a server that fails."""
        waits = retry_after(self.headers, time.time())
        return UnavailableError(f"the server failed (HTTP {self.status})", retry_after=waits, **self.where)

    def too_large(self, why: str | None = None, *, counts_texts: bool = False) -> RequestTooLargeError:
        """Give the error for a request that holds too much."""
        why = why or "the request holds too many texts or tokens"
        large = RequestTooLargeError(f"{why} (HTTP {self.status}){self.server_message}", **self.where)
        large.counts_texts = counts_texts
        return large

    def common_error(self, variable: str | None) -> ProviderError | None:
        """Give the error for a status that says it all, None for one whose message counts; `variable` has the key."""
        if 300 <= self.status < 400:
            return BadRequestError(
                f"the server answered with a redirect (HTTP {self.status}){REDIRECT_HINT}", **self.where
            )
        if self.status == 402:
            return self.quota()
        if self.status in (401, 403):
            return AuthenticationError(
                f"the key was refused for {self.model} (HTTP {self.status}); check api_key="
                + (f" or {variable}" if variable else ""),
                **self.where,
            )
        if self.status == 429:
            return self.rate_limit()
        if self.status in (408, 409) or self.status >= 500:
            return self.unavailable()
        return None

    def bad_request(self, why: str = "") -> BadRequestError:
        """Give the error for a request that cannot be answered as it stands."""
        return BadRequestError(
            f"the server refuses the request (HTTP {self.status}){self.server_message}{why}", **self.where
        )


# Of what has one of these among its causes no byte was sent: httpx's and aiohttp's own, and the system's.
NEVER_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol", "gaierror"})
NEVER_CONNECTED |= {"ClientConnectorError", "ClientConnectorDNSError", "ClientProxyConnectionError"}
NEVER_CONNECTED |= {"ConnectionRefusedError", "SSLCertVerificationError", "ClientConnectorCertificateError"}


def connection_error(message: str, lost: BaseException) -> UnavailableError:
    """Give the error for a connection that failed, and whether that was before anything was sent."""
    error = UnavailableError(message)
    cause: BaseException | None = lost
    for _ in range(20):
        if cause is None:
            break
        error.unsent |= type(cause).__name__ in NEVER_CONNECTED
        cause = cause.__cause__ or cause.__context__
    return error
