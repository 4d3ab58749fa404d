"""HTTP client of batch endpoints: small JSON replies in memory, files streamed from and to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from embedkit_core.common.errors import BadReplyError, ProviderError, TimedOutError
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.http.provider import HTTPProvider
from embedkit_core.providers.http.public_sdk import RawResponse
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, connection_error
from embedkit_core.providers.secrets import Hidden, Secret, reveal

READ_TIMEOUT = 600.0  # of each read and write; a request as a whole has no limit
MAX_REPLY_BYTES = 32 << 20  # of a JSON reply: a page of a list of batches
CHUNK_BYTES = 1 << 20

Authorize = Callable[[str], Mapping[str, str]]  # the header with an API key


class BatchTransport:
    """Client of httpx or httpx2 that neither retries nor follows redirects.

    Args:
        provider: The provider, whose key and connection settings apply.
        httpx: The module.
        authorize: Returns the header with an API key.
    """

    def __init__(self, provider: HTTPProvider, httpx: Any, authorize: Authorize) -> None:
        import ssl

        self._provider, self._httpx, self._authorize = provider, httpx, authorize
        # httpcore passes errors of TLS while reading on. Not OSError: that of a full disk is the caller's.
        self._errors = (httpx.RequestError, httpx.InvalidURL, ssl.SSLError, ConnectionError)
        self._connection = provider.connection.with_defaults({"accept-encoding": "identity"})
        self._client = self._open(self._connection)
        # Without the user's headers, which may have credentials: the addresses of files are those of other hosts.
        self._bare_client: Any = None

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        to: Path | None = None,
        **arguments: Any,
    ) -> RawResponse:
        """Send a request with the API key and return its response; the body of a success is written to `to`, if given.

        Raises:
            ProviderError: There is no response. `unsent` is set if the request certainly did not reach the server.
        """
        key = await self._current_key()
        try:
            async with self._client.stream(
                method,
                url,
                headers=self._connection.with_defaults({**self._authorize(key.reveal()), **(headers or {})}).headers,
                **arguments,
            ) as response:
                return await _read(response, to)
        except self._errors as error:
            failure = self._failure(error, urlsplit(url).netloc, CHECK_ADDRESS if self._provider.endpoint else "")
        raise failure

    async def fetch(self, url: Hidden, to: BinaryIO) -> int:
        """Write what is at a signed address of another host to `to`, without credentials; return the HTTP status."""
        self._bare_client = self._bare_client or self._open(
            Connection(proxy=self._connection.proxy, ca_bundle=self._connection.ca_bundle)
        )
        try:
            async with self._bare_client.stream("GET", reveal(url)) as response:
                if response.status_code == 200:
                    async for chunk in response.aiter_bytes(CHUNK_BYTES):
                        to.write(chunk)
                return int(response.status_code)
        except self._errors as error:
            failure = self._failure(error, urlsplit(reveal(url)).hostname or "", "")
        raise failure

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        if self._bare_client is not None:
            await self._bare_client.aclose()

    def secrets(self) -> list[str]:
        """Return the credentials, which no message may repeat."""
        return self._provider.connection.secrets_with(self._provider.secret.constant())

    def _open(self, connection: Connection) -> Any:
        return self._httpx.AsyncClient(
            headers=dict(connection.headers),
            proxy=connection.proxy,
            follow_redirects=False,  # a redirect would send the user's headers to another host
            verify=connection.ssl_context(self._httpx.create_ssl_context),
            timeout=self._httpx.Timeout(READ_TIMEOUT),
        )

    async def _current_key(self) -> Secret:
        """Return the current API key; a function of the user that returns it runs on a thread of its own."""
        secret = self._provider.secret
        if secret.source is not None:
            try:
                await asyncio.to_thread(secret.refresh)
            except ProviderError as error:
                error.unsent = True
                raise
        return secret.constant()

    def _failure(self, error: Exception, host: str, fix: str) -> ProviderError:
        if not isinstance(error, self._httpx.TimeoutException):
            return connection_error(host, error, fix)
        failure = TimedOutError(f"Server at {host} did not respond within {READ_TIMEOUT:.0f} s.")
        failure.unsent = isinstance(error, self._httpx.ConnectTimeout)
        return failure


async def read_file(file: Path) -> AsyncIterator[bytes]:
    """Yield a file in chunks, as the content of a request."""
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            yield chunk


async def _read(response: Any, to: Path | None) -> RawResponse:
    """Read a response, or write the body of a success to a file."""
    if to is not None and response.status_code == 200:
        with to.open("wb") as opened:
            async for chunk in response.aiter_bytes(CHUNK_BYTES):
                opened.write(chunk)
        return RawResponse(200, response.headers, b"")
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            body.clear()
            del chunk  # tools that report errors show local variables
            raise BadReplyError(f"Server response is larger than {MAX_REPLY_BYTES:,} bytes. Check base_url=.")
    return RawResponse(response.status_code, response.headers, bytes(body))
