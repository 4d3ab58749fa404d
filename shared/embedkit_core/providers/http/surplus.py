"""Connections of httpx and httpx2 with bytes after a response, which would be taken for the next response.

httpcore keeps such a connection if the bytes were received together with the response. There is no public setting, so
this reads attributes of httpcore, h11 and anyio. A test fails if one of them is renamed.
"""

from __future__ import annotations

from typing import Any

LINKS = ("_stream", "_httpcore_stream", "_connection")  # from a response's stream to its connection
EXPIRED = -1.0  # seconds


def drop_if_surplus(response_stream: Any) -> None:
    """Mark the connection of a response as expired if it has received bytes after the response.

    Called when the body was read and before the response is closed, which returns the connection to the pool.
    """
    connection = find_connection(response_stream)
    if connection is not None and (connection._h11_state.trailing_data[0] or _has_unread(connection)):
        connection._keepalive_expiry = EXPIRED


def find_connection(response_stream: Any) -> Any:
    """Return httpcore's HTTP/1.1 connection of a response, None if there is none."""
    found = response_stream
    while found is not None and not hasattr(found, "_h11_state"):
        found = next((getattr(found, link) for link in LINKS if hasattr(found, link)), None)
    return found


def _has_unread(connection: Any) -> bool:
    """Return True if anyio holds bytes that httpcore has not read."""
    stream = getattr(connection._network_stream, "_stream", None)
    while stream is not None:
        protocol, tls_input = getattr(stream, "_protocol", None), getattr(stream, "_read_bio", None)
        if getattr(protocol, "read_queue", None) or (tls_input is not None and tls_input.pending):
            return True
        stream = getattr(stream, "transport_stream", None)  # of a TLS stream
    return False
