"""Cache keys: SHA-256 over everything that changes a vector. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY_VERSION = 1


def key_parts(
    *, provider: str, endpoint: str, wire: Mapping[str, Any], long_text: str, after: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Give what a key covers besides the text; `after` is what is done to the reply (cut, normalise, dtype)."""
    parts = {"provider": provider, "endpoint": endpoint, "wire": dict(wire), "long_text": long_text, **(after or {})}
    return {name: value for name, value in parts.items() if value not in (None, "", {}, False)}


def key_prefix(parts: Mapping[str, Any]) -> bytes:
    """Give the bytes that go before a text in its key."""
    listed = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"rag-embedkit key {KEY_VERSION}\n{listed}\n".encode()


def key_of(prefix: bytes, text: str) -> bytes:
    """Give the key of one text."""
    return hashlib.sha256(prefix + text.encode()).digest()
