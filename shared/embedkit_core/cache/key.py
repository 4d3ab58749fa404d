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
    """Return the parts of a key besides the text, without empty parts. The names are frozen, as they are hashed.

    Args:
        provider: Name of the provider in keys.
        endpoint: Canonical address. "" for the provider's default host.
        wire: The request without the texts.
        long_text: How texts over the model's limit are embedded.
        after: Post-processing of the reply: truncation, normalization, dtype.
    """
    parts = {"provider": provider, "endpoint": endpoint, "wire": dict(wire), "long_text": long_text, **(after or {})}
    return {name: value for name, value in parts.items() if value not in (None, "", {}, False)}


def key_prefix(parts: Mapping[str, Any]) -> bytes:
    """Return the bytes that are hashed before a text."""
    listed = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"rag-embedkit key {KEY_VERSION}\n{listed}\n".encode()


def key_of(prefix: bytes, text: str) -> bytes:
    """Return the key of a text: 32 bytes."""
    return hashlib.sha256(prefix + text.encode()).digest()
