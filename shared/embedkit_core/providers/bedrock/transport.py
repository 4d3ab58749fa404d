"""Sending of the SDK's signed requests: timeout, proxy, certificates and limits of each request of ours.

botocore's own transport has one timeout per client, reads refusals without a limit, and takes no password for a key. So
a handler of its event `before-send` sends the request through urllib3, which botocore depends on, and returns the
response. Importing this module imports both.
"""

from __future__ import annotations

import io
import math
import os
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import urllib3
from botocore.awsrequest import AWSResponse
from botocore.httpsession import get_cert_path

from embedkit_core.common.errors import TimedOutError
from embedkit_core.common.types import Batch
from embedkit_core.providers.http.bodies import ACCEPT_ENCODING, BodyLimits, LimitedBody
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.http.public_sdk import RawResponse
from embedkit_core.providers.secrets import Hidden, reveal

CHUNK_BYTES = 1 << 16
MAX_CONNECTIONS = 512
UNSIGNED_HEADERS = frozenset({"authorization", "user-agent", "accept-encoding"})  # set after signing


class Transport:
    """Connections to one address, and the request that each thread sends.

    Args:
        url: The address.
        connection: Headers, proxy and certificates of the user.
        ca_bundle: Trusted certificates of the AWS configuration, None for the default.
    """

    def __init__(self, url: str, connection: Connection, ca_bundle: str | None) -> None:
        def default_context() -> ssl.SSLContext:  # reading it takes 30 ms
            bundle = ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or get_cert_path(True)
            return ssl.create_default_context(cafile=bundle)

        proxy = Hidden(connection.proxy_for(url))
        ssl_context: ssl.SSLContext | Literal[True] | None = connection.ssl_context(default_context)
        if ssl_context is True:
            uses_tls = url.startswith("https:") or str(reveal(proxy)).startswith("https:")
            ssl_context = default_context() if uses_tls else None
        settings: dict[str, Any] = {"maxsize": MAX_CONNECTIONS, "ssl_context": ssl_context}
        if reveal(proxy) is None:
            self._pool: urllib3.PoolManager = urllib3.PoolManager(1, **settings)
        else:
            self._pool = urllib3.ProxyManager(
                reveal(proxy),
                1,
                proxy_headers=_proxy_headers(proxy),
                proxy_ssl_context=ssl_context,
                **settings,
            )
        self._connection = connection
        self._current = threading.local()

    def begin(self, batch: Batch, authorization: Hidden) -> None:
        """Set what this thread sends next, and the Authorization header that replaces the SDK's if it is not None."""
        self._current.timeout = urllib3.Timeout(total=batch.timeout)
        self._current.deadline = math.inf if batch.timeout is None else time.monotonic() + batch.timeout
        self._current.limits = BodyLimits.of(batch)
        self._current.authorization = authorization
        self._current.response = None

    @property
    def response(self) -> RawResponse | None:
        """Response to the request of this thread, None if there is none."""
        response: RawResponse | None = self._current.response
        return response

    def add_headers(self, params: dict[str, Any], **_: object) -> None:
        """Add the user's headers before the request is signed (event `before-call`)."""
        headers = params["headers"]
        own = {name.lower(): value for name, value in self._connection.headers.items()}
        for name in [name for name in headers if name.lower() in own]:
            del headers[name]
        headers.update({name: value for name, value in own.items() if name not in UNSIGNED_HEADERS})

    def send(self, request: Any, **_: object) -> AWSResponse:
        """Send a signed request and return its response, read (event `before-send`)."""
        current = self._current
        if reveal(current.authorization) is not None:
            request.headers["Authorization"] = reveal(current.authorization)
        own = {name.lower(): value for name, value in self._connection.headers.items()}
        request.headers["accept-encoding"] = own.get("accept-encoding", ACCEPT_ENCODING)  # unsigned: proxies change it
        if "user-agent" in own:  # the SDK has replaced it
            request.headers["user-agent"] = own["user-agent"]
        received = self._pool.urlopen(
            request.method,
            request.url,
            body=request.body,
            headers=dict(request.headers.items()),
            timeout=current.timeout,
            retries=False,
            redirect=False,  # a redirect would send the user's headers to another host
            preload_content=False,
            decode_content=False,
        )
        try:
            body = b"".join(_read(received, current.limits, current.deadline))
        except BaseException:
            received.close()
            raise
        headers = {name.lower(): value for name, value in received.headers.items()}
        current.response = RawResponse(received.status, headers, body)
        return AWSResponse(request.url, received.status, received.headers, _ReadBody(body))

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()


class _ReadBody(io.BytesIO):
    """A body that was read, with the methods that botocore calls."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        """Yield the whole body."""
        yield self.read()


def _read(received: Any, limits: BodyLimits, deadline: float) -> Iterator[bytes]:
    """Yield the chunks of a body, decompressed, up to its limit.

    Raises:
        TimedOutError: The deadline has passed; urllib3's timeout is for each chunk, which would keep the thread.
    """
    body = LimitedBody(received.status, received.headers.get("content-encoding", ""), limits)
    chunks = received.stream(CHUNK_BYTES, decode_content=False)
    while not body.is_cut and (chunk := next(chunks, None)) is not None:
        if time.monotonic() > deadline:
            raise TimedOutError("Server did not respond in time. Increase timeout=.")
        yield body.read(chunk)
    if body.is_cut:
        received.close()


def _proxy_headers(proxy: Hidden) -> dict[str, str]:
    """Return the header with the user name and password of a proxy's address."""
    if urlsplit(reveal(proxy)).username is None:
        return {}
    parts = Hidden(urlsplit(reveal(proxy)))
    login = Hidden(":".join(unquote(part or "") for part in (reveal(parts).username, reveal(parts).password)))
    return dict(urllib3.make_headers(proxy_basic_auth=reveal(login)))
