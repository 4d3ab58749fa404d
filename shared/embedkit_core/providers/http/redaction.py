"""Canonical addresses, and excerpts of server messages without texts or secrets. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable
from urllib.parse import urlsplit

from embedkit_core.common.errors import ConfigurationError

MAX_EXCERPT = 200  # characters of a server message that an error message may contain
MAX_SEARCHED = 1_000_000  # characters of texts to search for shared pieces; beyond that there is no excerpt
MIN_SHARED = 12  # characters shared with a text or key that count as a leak
EXAMPLE_FIX = "Pass an address such as http://localhost:8000/v1."


def canonical_url(url: str) -> str:
    """Return the canonical form of an address: lower-case host, no default port, no trailing slash.

    Raises:
        ConfigurationError: It is not an address for requests.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"base_url: must be a string (got {type(url).__name__}). {EXAMPLE_FIX}")
    try:
        parts = urlsplit(url.strip())
        is_valid = parts.scheme in ("http", "https") and not any(map(str.isspace, url.strip()))
        port, name = parts.port, parts.hostname if is_valid else None
    except ValueError:
        name = None
    if not name:
        raise ConfigurationError(f"base_url: not a valid address (got {_without_login(url)!r}). {EXAMPLE_FIX}")
    if parts.query or parts.fragment:
        raise ConfigurationError("base_url: contains a query or fragment, which requests would drop. Remove it.")
    if parts.path.rstrip("/").endswith("/embeddings"):
        raise ConfigurationError(f"base_url: must not end in /embeddings. {EXAMPLE_FIX}")
    if parts.username or parts.password:
        raise ConfigurationError("base_url: contains a user name or password. Pass the credential as api_key=.")
    host = f"[{name}]" if ":" in name else name
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, default) else f':{port}'}{parts.path.rstrip('/')}"


def _without_login(url: str) -> str:
    return url.rpartition("@")[2]


def safe_excerpt(message: str, texts: Iterable[str], secrets: Iterable[str]) -> str:
    """Return ": " and the beginning of a server message, or "" if it contains a piece of a text or secret."""
    excerpt = " ".join(message[:MAX_EXCERPT].split())
    texts = list(texts)
    if not excerpt or any(_shares_piece(excerpt, secret) for secret in secrets) or sum(map(len, texts)) > MAX_SEARCHED:
        return ""
    # The text itself and its escaped forms in JSON and Python.
    spellings = (spelling for text in texts for spelling in (text, json.dumps(text)[1:-1], repr(text)[1:-1]))
    if any(_shares_piece(excerpt, " ".join(spelling.split())) for spelling in spellings):
        return ""
    return f": {excerpt}"


def _shares_piece(message: str, text: str) -> bool:
    """Return True if a message contains all of a short text, or MIN_SHARED characters of a longer one."""
    message, text = message.casefold(), text.casefold()
    if len(text) < MIN_SHARED:
        return len(text) > 2 and text in message
    return any(message[i : i + MIN_SHARED] in text for i in range(max(1, len(message) - MIN_SHARED + 1)))
