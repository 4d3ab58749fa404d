"""The control endpoints of the fake server."""

import http.client
import json
from typing import Any


def _request(port: int, method: str, path: str, body: str | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def reset(port: int, settings: dict[str, Any]) -> None:
    """Reset the server's counts and apply settings."""
    _request(port, "POST", "/reset", json.dumps(settings))


def stats(port: int) -> dict[str, Any]:
    """Return the server's counts since the last reset."""
    answer: dict[str, Any] = _request(port, "GET", "/stats")
    return answer


def arrivals(port: int) -> list[tuple[float, int, int, int]]:
    """Return the requests since the last reset: arrival (`time.monotonic()`), texts, tokens, and requests in flight."""
    return [tuple(request) for request in _request(port, "GET", "/arrivals")]
