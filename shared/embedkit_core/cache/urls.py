"""Caches that are named by an address, scheme://...: which schemes there are, and the built-in one.

An address is shown, logged and pickled with the settings it is part of. So it never holds a secret, and what is wrong
with one is said without it.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from embedkit_core.cache.opening import open_folder
from embedkit_core.common import plugins
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import Cache

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://|(file):", re.I)  # of one letter it is a drive of Windows'
_SECRET = re.compile("token|key|secret|pass|pwd|auth|sig|cred", re.I)  # in the name of a parameter


def scheme_of(cache: object) -> str | None:
    """Give the scheme of a cache that is named by an address, in lower case; None for what is none.

    `file:/folder` is one too, though a wrong one: it is meant as an address, and would be a folder named `file:`.
    """
    found = _URL.match(cache) if isinstance(cache, str) else None
    return (found[1] or found[2]).lower() if found else None


def is_built_in(scheme: str) -> bool:
    """Tell whether a scheme is ours."""
    return scheme in plugins.BUILT_IN[plugins.CACHES]


def open_url(url: str) -> Cache:
    """Give the cache at an address, from whoever has registered its scheme.

    Raises:
        ConfigurationError: nobody has, the address holds a secret, or they will not have it.
    """
    scheme = scheme_of(url) or ""
    known = plugins.registered(plugins.CACHES)
    if scheme not in known:
        shown = {name: f"{name}://" for name in sorted(known)}
        hint = suggest(scheme, shown)
        listed = ", ".join(shown.values())
        raise ConfigurationError(f"no cache is installed for {scheme}://; there are {listed}{hint and f'; {hint}'}")
    _refuse_secrets(url, scheme)
    opener = plugins.load(plugins.CACHES, scheme)
    where = plugins.describe(known[scheme][0])
    if not callable(opener):
        raise ConfigurationError(f"the cache {scheme}:// cannot be called with an address: {where}")
    try:
        made = opener(url)
    except Exception as error:
        refused = plugins.refusal(error, f"the cache {scheme}:// cannot be opened", where)
    else:
        if isinstance(made, Cache):
            return made
        refused = ConfigurationError(f"the cache {scheme}:// lacks one of get_many, set_many, close: {where}")
    raise refused


def open_file_url(url: str) -> Cache:
    """Give the cache in the folder that a file:/// address names."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    here = url[len("file:") :].startswith("//") and parts.netloc in ("", "localhost")
    if not here or parts.query or parts.fragment or not path.strip("/"):
        raise ConfigurationError("this file: address names no folder here; write cache='file:///absolute/path'")
    return open_folder(path[1:] if os.name == "nt" and re.match("/[A-Za-z]:", path) else path)


def _refuse_secrets(url: str, scheme: str) -> None:
    """Raise ConfigurationError, without the address, where a part of it may be a secret or cannot be told from one."""
    if not _is_readable(url):  # the characters of a password may be what splits it wrongly
        raise ConfigurationError(
            f"the address of the cache {scheme}:// cannot be read: what is special in one is percent-encoded, and a "
            "password is set in the environment variable that this cache reads"
        )
    is_folder = scheme == "file"  # whose name may hold any character
    said = url if is_folder else unquote(url)
    names = [part.partition("=")[0] for part in re.split("[?&;#]", said)[1:]]
    if "@" in (urlsplit(url).netloc if is_folder else said) or any(_SECRET.search(unquote(name)) for name in names):
        raise ConfigurationError(
            f"the address of the cache {scheme}:// holds a user, a password or a parameter that is named like one, and "
            "settings are shown, logged and pickled; set it in the environment variable that this cache reads"
        )


def _is_readable(url: str) -> bool:
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True
