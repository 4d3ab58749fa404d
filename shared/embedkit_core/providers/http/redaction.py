"""Addresses and server texts, made safe to compare and to show."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import urlsplit

from embedkit_core.common.errors import ConfigurationError

MAX_EXCERPT = 200  # characters of a server's text that may go into a message
MAX_SEARCHED = 1_000_000  # characters of texts that are searched for a piece; past that nothing is shown
MIN_SHARED = 12  # characters in common with a text or key that make it one


def canonical_url(url: str) -> str:
    """Give one spelling for an address: lower-case host, no default port, no trailing slash."""
    if not isinstance(url, str):
        raise ConfigurationError(f"base_url must be a string, not {type(url).__name__}")
    try:
        parts = urlsplit(url.strip())
        port, name = parts.port, parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        name = None
    if not name:
        raise ConfigurationError(f"base_url={_without_login(url)!r} is not an address such as http://localhost:8000/v1")
    if parts.query or parts.fragment:
        raise ConfigurationError("base_url holds a query, which requests would not carry; give the address alone")
    if parts.path.rstrip("/").endswith("/embeddings"):
        raise ConfigurationError("base_url ends before /embeddings, as in http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ConfigurationError("base_url holds a user name or password; pass it as api_key=")
    host = f"[{name}]" if ":" in name else name
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, default) else f':{port}'}{parts.path.rstrip('/')}"


def _without_login(url: str) -> str:
    return url.rpartition("@")[2]


def safe_excerpt(message: str, texts: Iterable[str], secrets: Iterable[str]) -> str:
    """Give what may be shown of a server's text, as ': ...', or nothing where it repeats a text or a secret."""
    shown = " ".join(message[:MAX_EXCERPT].split())
    texts = list(texts)
    if not shown or any(_shares_piece(shown, secret) for secret in secrets) or sum(map(len, texts)) > MAX_SEARCHED:
        return ""
    # As it stands, and as JSON or Python would show it.
    spellings = (spelling for text in texts for spelling in (text, json.dumps(text)[1:-1], repr(text)[1:-1]))
    if any(_shares_piece(shown, " ".join(spelling.split())) for spelling in spellings):
        return ""
    return f": {shown}"


def _shares_piece(message: str, text: str) -> bool:
    """Tell whether a message holds a piece of a text: all of a short one, or a dozen characters of a longer one."""
    message, text = message.casefold(), text.casefold()
    if len(text) < MIN_SHARED:
        return len(text) > 2 and text in message
    return any(message[i : i + MIN_SHARED] in text for i in range(max(1, len(message) - MIN_SHARED + 1)))
