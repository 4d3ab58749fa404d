"""Opening of caches by folder: one shared object per folder and process."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.types import Cache

if TYPE_CHECKING:
    from embedkit_core.cache.disk.cache import DiskCache

CACHE_VARIABLE = "RAG_EMBEDKIT_CACHE"
ADDRESS = re.compile("[a-z][a-z0-9+.-]+://", re.I)  # a single letter is a Windows drive
_open_caches: weakref.WeakValueDictionary[Path, DiskCache] = weakref.WeakValueDictionary()
_lock = ForkLock()


def open_cache(folder: Path | str) -> Cache:
    """Return the cache in a folder; callers with the same folder share one object. Files are opened on first use."""
    disk = import_module("embedkit_core.cache.disk.cache")
    path = Path(folder).expanduser().resolve()
    with _lock.lock:
        cache = _open_caches.get(path)
        if cache is None:
            cache = _open_caches[path] = disk.DiskCache(path)
        return cache


def environment_cache() -> str | None:
    """Return the default cache that RAG_EMBEDKIT_CACHE names, a folder or an address. None if it is unset or empty."""
    return os.environ.get(CACHE_VARIABLE) or None


def default_folder() -> Path:
    """Return the cache folder of the user, which is the default cache if the environment names none."""
    return Path(import_module("platformdirs").user_cache_dir("rag-embedkit", appauthor=False))


@contextmanager
def cache_errors_name(source: str) -> Iterator[None]:
    """Begin the message of a ConfigurationError about `cache` with what named the cache: an option or a variable."""
    try:
        yield
    except ConfigurationError as error:
        argument, colon, rest = str(error).partition(":")
        if argument == "cache" and colon:
            error.args = (f"{source}:{rest}",)
        raise


def open_folder(name: str | PathLike[str]) -> Cache:
    """Return the cache in the folder that `cache=` names; it need not exist yet.

    Raises:
        ConfigurationError: It cannot be a folder, for example because a parent is a file.
    """
    if name == "":  # the path of "" is the current folder
        raise ConfigurationError("cache: must not be empty. Pass the path of a folder.")
    if ADDRESS.search(str(name)):  # the message does not show it, since it may have a password
        raise ConfigurationError(
            "cache: a folder must not have an address in its name. Pass an address alone, or several caches as a list."
        )
    try:
        folder = Path(name).expanduser()
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise ConfigurationError(f"cache: cannot be a folder, {existing} is a file (got {str(name)!r})")
        return open_cache(folder)
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"cache: cannot be a folder, {type(error).__name__} (got {str(name)!r})") from None
