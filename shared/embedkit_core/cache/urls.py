"""Caches that are named by an address, scheme://...: which schemes there are, and the built-in one.

An address is shown, logged and pickled with the settings it is part of. So it never holds a secret, and what is wrong
with one is said without it.
"""

from __future__ import annotations

import difflib
import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

from embedkit_core import plugins
from embedkit_core.cache import open_folder
from embedkit_core.errors import ConfigurationError
from embedkit_core.types import Cache

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.I)  # of one letter it is a drive of Windows'
_SECRETS = frozenset({"password", "passwd", "pwd", "secret", "token", "api_key", "apikey", "access_key"})


def scheme_of(cache: object) -> str | None:
    """Give the scheme of a cache that is named by an address, in lower case; None for what is none."""
    found = _URL.match(cache) if isinstance(cache, str) else None
    return found[1].lower() if found else None


def is_built_in(scheme: str) -> bool:
    """Tell whether a scheme is ours."""
    return plugins.is_built_in(plugins.registered(plugins.CACHES)[scheme][0])


def open_url(url: str) -> Cache:
    """Give the cache at an address, from whoever has registered its scheme.

    Raises:
        ConfigurationError: nobody has, the address holds a secret, or they will not have it.
    """
    scheme = scheme_of(url) or ""
    known = plugins.registered(plugins.CACHES)
    if scheme not in known:
        close = difflib.get_close_matches(scheme, known, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}://'?" if close else ""
        listed = ", ".join(f"{name}://" for name in sorted(known))
        raise ConfigurationError(f"no cache is installed for {scheme}://; there are {listed}{hint}")
    _refuse_secrets(url, scheme)
    opener = plugins.load(plugins.CACHES, scheme)
    where = plugins.described(known[scheme][0])
    if not callable(opener):
        raise ConfigurationError(f"the cache {scheme}:// cannot be called with an address: {where}")
    try:
        made = opener(url)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(f"the cache {scheme}:// cannot be opened ({type(error).__name__}): {where}") from error
    if not isinstance(made, Cache):
        raise ConfigurationError(f"the cache {scheme}:// lacks one of get_many, set_many, close: {where}")
    return made


def open_file_url(url: str) -> Cache:
    """Give the cache in the folder that a file:/// address names."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not path.strip("/"):
        raise ConfigurationError(f"cache={url!r} names no folder here; write file:///absolute/path")
    return open_folder(path[1:] if os.name == "nt" and re.match("/[A-Za-z]:", path) else path)


def _refuse_secrets(url: str, scheme: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # the characters of a password may be what splits it wrongly
        raise ConfigurationError(
            f"the address of the cache {scheme}:// cannot be read; one holds no password, and what is special in it "
            "is percent-encoded"
        ) from None
    named = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.password is not None or named & _SECRETS:
        raise ConfigurationError(
            f"the address of the cache {scheme}:// holds a password, and settings are shown, logged and pickled; "
            "set it in the environment variable that this cache reads"
        )
