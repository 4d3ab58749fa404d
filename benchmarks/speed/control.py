"""The control endpoints of the fake server."""

import http.client
import json
from typing import Any


def _ask(port: int, method: str, path: str, body: str | None = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def reset(port: int, settings: dict[str, Any]) -> None:
    """Make the server forget what has happened, and behave as these settings say."""
    _ask(port, "POST", "/reset", json.dumps(settings))


def stats(port: int) -> dict[str, Any]:
    """Ask what has happened since the last reset."""
    answer: dict[str, Any] = _ask(port, "GET", "/stats")
    return answer
