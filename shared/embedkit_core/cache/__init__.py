"""The interface for cache authors, and the cache in a folder.

`BytesCache` (over a `ByteStore`), `CacheFolder` (maintenance) and `RawDisk` (needs diskcache) are imported on first
access.
"""

from typing import TYPE_CHECKING

from embedkit_core.cache.opening import open_cache
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.types import Cache, Entry

if TYPE_CHECKING:
    from embedkit_core.cache.bytes_cache import BytesCache, ByteStore
    from embedkit_core.cache.maintenance import CacheFolder
    from embedkit_core.cache.raw_disk import RawDisk

__all__ = ["ByteStore", "BytesCache", "Cache", "CacheFolder", "Entry", "RawDisk", "open_cache"]

_LAZY = {
    "ByteStore": "bytes_cache",
    "BytesCache": "bytes_cache",
    "CacheFolder": "maintenance",
    "RawDisk": "raw_disk",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
