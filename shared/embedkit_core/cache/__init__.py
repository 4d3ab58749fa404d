"""The interface for cache authors, and the cache in a folder."""

from embedkit_core.cache.opening import open_cache
from embedkit_core.common.types import Cache, Entry

__all__ = ["Cache", "Entry", "open_cache"]
