"""Caches that are given as an address, scheme://...: lookup of the scheme, and the built-in scheme file.

An address is displayed, logged and pickled with the other settings. So it must not contain a secret, and errors never
show it.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from embedkit_core.cache.opening import ADDRESS, open_folder
from embedkit_core.common import plugins
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import Cache

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://|(file|rediss?):", re.I)  # a single letter is a Windows drive
_SECRET = re.compile("token|key|secret|pass|pwd|auth|sig|cred", re.I)  # in the name of a parameter


def scheme_of(cache: object) -> str | None:
    """Return the scheme of an address in lower case. None if `cache` is not an address.

    `file:/folder` and `redis:host` count as addresses, so that they are rejected instead of becoming folders with such
    names.
    """
    match = _URL.match(cache) if isinstance(cache, str) else None
    return (match[1] or match[2]).lower() if match else None


def is_built_in_scheme(scheme: str) -> bool:
    """Return True if the scheme belongs to a cache of this library."""
    return scheme in plugins.BUILT_IN[plugins.CACHES]


def open_url(url: str) -> Cache:
    """Return the cache at an address, from the package that registered its scheme.

    Raises:
        ConfigurationError: The scheme is not registered, the address contains a secret, or the package rejects it.
    """
    scheme = scheme_of(url) or ""
    known = plugins.registered(plugins.CACHES)
    if scheme not in known:
        shown = {name: f"{name}://" for name in sorted(known)}
        hint = suggest(scheme, shown)
        listed = ", ".join(shown.values())
        raise ConfigurationError(
            f"cache: no package provides {scheme}:// (available: {listed}){f'; {hint}' if hint else '.'} Pass a "
            "folder, or install a package that registers the scheme."
        )
    if not is_built_in_scheme(scheme):  # built-in openers check it themselves
        check_secrets(url, scheme, "cache", "set a password in the environment variable that the cache reads")
    opener = plugins.load(plugins.CACHES, scheme)
    where = plugins.describe(known[scheme][0])
    if not callable(opener):
        raise ConfigurationError(f"The cache {scheme}:// cannot be called with an address: {where}")
    try:
        cache = opener(url)
    except Exception as error:
        failure = plugins.plugin_error(error, f"The cache {scheme}:// cannot be opened", where)
    else:
        if isinstance(cache, Cache):
            return cache
        failure = ConfigurationError(f"The cache {scheme}:// lacks one of get_many, set_many, close: {where}")
    raise failure


def open_file_url(url: str) -> Cache:
    """Return the cache in the folder of a file:/// address.

    Raises:
        ConfigurationError: The address has no absolute folder on this machine, or contains a secret.
    """
    check_secrets(url, "file", "cache", "use cache='file:///absolute/path'")
    parts = urlsplit(url)
    path = unquote(parts.path)
    is_local = url[len("file:") :].startswith("//") and parts.netloc in ("", "localhost")
    if not is_local or parts.query or parts.fragment or not path.strip("/"):
        raise ConfigurationError(
            "cache: the file: address has no folder on this machine. Use cache='file:///absolute/path'"
        )
    return open_folder(path[1:] if os.name == "nt" and re.match("/[A-Za-z]:", path) else path)


def check_secrets(url: str, scheme: str, argument: str, fix: str) -> None:
    """Check that no part of an address looks like a secret.

    Args:
        url: The address.
        scheme: Its scheme.
        argument: The argument that it was passed as, for errors.
        fix: What to do instead, for errors.

    Raises:
        ConfigurationError: A part does, or the address cannot be parsed. The message does not have the address.
    """
    if not _is_parsable(url):
        raise ConfigurationError(
            f"{argument}: the {scheme}:// address cannot be parsed. Percent-encode special characters, and {fix}."
        )
    if _has_secret(url, scheme):
        raise ConfigurationError(
            f"{argument}: the {scheme}:// address must not contain a user, a password or a parameter named like a "
            f"secret (token, key, ...), because settings are displayed, logged and pickled. Instead, {fix}."
        )


def mask_secrets(cache: Any) -> Any:
    """Return an address that `check_secrets` refuses without its secret, in a form that is refused for the same reason.

    Local variables show it: see `Hidden`. In a list, each cache is masked; anything else is returned unchanged.
    """
    if isinstance(cache, (list, tuple)):
        return [mask_secrets(one) for one in cache]
    address = ADDRESS.search(cache) or _URL.match(cache) if isinstance(cache, str) else None
    if address is None:
        return cache
    start = cache[: address.end()].removesuffix("//") + "//"
    if not _is_parsable(cache):
        return start + "[***@"
    return start + "***@" if _has_secret(cache, scheme_of(cache) or "") else cache


def _has_secret(url: str, scheme: str) -> bool:
    is_folder = scheme == "file"  # a folder name may contain any character
    decoded = url if is_folder else unquote(url)
    names = [part.partition("=")[0] for part in re.split("[?&;#]", decoded)[1:]]
    return "@" in (urlsplit(url).netloc if is_folder else decoded) or any(_SECRET.search(unquote(n)) for n in names)


def _is_parsable(url: str) -> bool:
    """Return False for an address that characters of a password may have broken."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True
