"""Canonical form of the address of a server. No I/O."""

from __future__ import annotations

from urllib.parse import urlsplit

from embedkit_core.common.errors import ConfigurationError

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
        parts, port, name = urlsplit(""), None, None
    if not name:
        raise ConfigurationError(f"base_url: not a valid address (got {_without_login(url)!r}). {EXAMPLE_FIX}")
    if "api-version=" in parts.query:
        raise ConfigurationError("base_url: with an api-version, it is one of Azure. Use model='azure:DEPLOYMENT'.")
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
