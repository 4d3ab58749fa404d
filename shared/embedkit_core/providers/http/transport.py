"""Client of httpx with the connection settings of the user, and the errors of its requests."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from embedkit_core.common.errors import UnavailableError
from embedkit_core.providers.http.connection import Connection
from embedkit_core.providers.http.refusals import CHECK_ADDRESS, connection_error, root_cause

if TYPE_CHECKING:
    import httpx


def open_transport(connection: Connection) -> httpx.AsyncClient:
    """Return a client that limits bodies with `bodies.limit_bodies` and follows no redirects."""
    import httpx

    from embedkit_core.providers.http.bodies import ACCEPT_ENCODING, limiting_hook

    with contextlib.suppress(ImportError):  # imported here, because an import in the first request is not fork-safe
        importlib.import_module("anyio._backends._asyncio")
    return httpx.AsyncClient(
        headers=dict(connection.with_defaults({"accept-encoding": ACCEPT_ENCODING}).headers),
        event_hooks={"response": [limiting_hook(httpx.AsyncByteStream)]},
        proxy=connection.proxy,
        follow_redirects=False,  # a redirect would send the user's headers to another host
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        verify=connection.ssl_context(httpx.create_ssl_context),
    )


def unreachable(address: str, failure: BaseException, *, is_custom: bool) -> UnavailableError:
    """Return the error for a server that could not be reached.

    Args:
        address: Address of the requests.
        failure: Exception of httpx, or of TLS while reading.
        is_custom: True if the user has passed the address.
    """
    message = f"Server at {urlsplit(address).netloc} could not be reached ({root_cause(failure)})."
    return connection_error(message, failure, CHECK_ADDRESS if is_custom else "")
