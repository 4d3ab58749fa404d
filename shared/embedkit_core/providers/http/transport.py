"""Client of httpx with the connection settings of the user."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

from embedkit_core.providers.http.connection import Connection

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
