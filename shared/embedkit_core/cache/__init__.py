"""Where vectors are kept between runs: what a cache must do, and the one in a folder."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from embedkit_core.forks import ForkLock
from embedkit_core.types import Cache

if TYPE_CHECKING:
    from embedkit_core.cache.disk import DiskCache

__all__ = ["Cache", "open_cache"]


_open: weakref.WeakValueDictionary[Path, DiskCache] = weakref.WeakValueDictionary()
_lock = ForkLock()


def open_cache(folder: Path | str) -> Cache:
    """Give the cache in a folder, one object for all who name the same one; nothing is opened before it is used."""
    from embedkit_core.cache.disk import DiskCache

    path = Path(folder).expanduser().resolve()
    with _lock.lock:
        cache = _open.get(path)
        if cache is None:
            cache = _open[path] = DiskCache(path)
        return cache
