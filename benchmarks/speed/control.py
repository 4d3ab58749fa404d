"""The control endpoints of the fake server."""

import http.client
import json
from typing import Any

TEXTS_PER_REQUEST = 1000


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


def add_texts(port: int, texts: list[str]) -> None:
    """Have the server encode the rows of texts before a measurement. Counts and settings are reset."""
    reset(port, {"latency": 0.0, "latency_per_token": 0.0})
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        body = {"input": texts[start : start + TEXTS_PER_REQUEST], "encoding_format": "base64"}
        _request(port, "POST", "/v1/embeddings", json.dumps(body))
