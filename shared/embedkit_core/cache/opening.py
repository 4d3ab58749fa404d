"""Open the cache of a folder: one shared object per folder and process."""

from __future__ import annotations

import weakref
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import ForkLock, import_module
from embedkit_core.common.types import Cache

if TYPE_CHECKING:
    from embedkit_core.cache.disk.cache import DiskCache


_open: weakref.WeakValueDictionary[Path, DiskCache] = weakref.WeakValueDictionary()
_lock = ForkLock()


def open_cache(folder: Path | str) -> Cache:
    """Give the cache in a folder, one object for all who name the same one; nothing is opened before it is used."""
    disk = import_module("embedkit_core.cache.disk.cache")
    path = Path(folder).expanduser().resolve()
    with _lock.lock:
        cache = _open.get(path)
        if cache is None:
            cache = _open[path] = disk.DiskCache(path)
        return cache


def default_folder() -> Path:
    """Give the user's cache folder."""
    return Path(import_module("platformdirs").user_cache_dir("rag-embedkit", appauthor=False))


def open_folder(name: str | PathLike[str]) -> Cache:
    """Give the cache in a folder that need not exist yet.

    Raises:
        ConfigurationError: it can never be a folder.
    """
    try:
        folder = Path(name).expanduser()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ConfigurationError(f"cache={str(name)!r} cannot be a folder: {there} is a file")
        return open_cache(folder)
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"cache={str(name)!r} cannot be a folder ({type(error).__name__})") from None
