"""Connector of aiohttp that does not reuse a connection with bytes after a response. Importing it imports aiohttp."""

from __future__ import annotations

import selectors
from typing import Any

import aiohttp


class ExactConnector(aiohttp.TCPConnector):
    """Connector that drops a connection on which the server has sent bytes that no request asked for.

    aiohttp checks this when a response ends, but not for bytes that arrive later. They would be taken for the next
    response.
    """

    async def _get(self, *arguments: Any, **keywords: Any) -> Any:
        """Return a pooled connection, or None if there is none."""
        while (connection := await super()._get(*arguments, **keywords)) is not None:
            protocol = connection.protocol
            if protocol is None or not (protocol.should_close or _is_readable(protocol.transport)):
                break
            connection.close()
        return connection


def _is_readable(transport: Any) -> bool:
    """Return True if the socket of an idle connection has data, or was closed by the server."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.fileno() < 0:
        return True
    with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:
        selector.register(sock.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))
