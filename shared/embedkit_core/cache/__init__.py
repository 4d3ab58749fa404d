"""Where vectors are kept between runs: what a cache must do, and the one in a folder."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from embedkit_core.forks import ForkLock
from embedkit_core.types import Entry

if TYPE_CHECKING:
    from embedkit_core.cache.disk import DiskCache

__all__ = ["Cache", "open_cache"]


@runtime_checkable
class Cache(Protocol):
    """What the library asks of a cache; keys are 32 bytes, vectors float32 (dimensions,).

    `get_many` is called from any thread, `set_many` from one at a time. Failing to keep or to find a vector is no
    error: it is paid for again.
    """

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Give the entries there are."""
        ...

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Keep entries; they are safe when this returns."""
        ...

    def close(self) -> None:
        """Let go of what is open; the next call opens it again."""
        ...


_open: weakref.WeakValueDictionary[Path, DiskCache] = weakref.WeakValueDictionary()
_lock = ForkLock()


def open_cache(folder: Path | str) -> Cache:
    """Give the cache in a folder, one object for all who name the same one; nothing is opened before it is used."""
    from embedkit_core.cache.disk import DiskCache

    path = Path(folder).expanduser().resolve()
    with _lock:
        cache = _open.get(path)
        if cache is None:
            cache = _open[path] = DiskCache(path)
        return cache
