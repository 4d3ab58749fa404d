"""Memory tier: recently used query vectors of a process, read before the cache."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import Entry

_OVERHEAD_BYTES = 400  # of an entry besides its key and numbers: dict slot, tuple, array, bytes object


class MemoryTier:
    """LRU cache of entries with a limit in bytes. Thread-safe; a forked child has its own copy.

    Entries are read-only: copies, or arrays over the bytes of one row.
    """

    def __init__(self, max_bytes: int = 32 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lock = ForkLock()

    def get(self, key: bytes) -> Entry | None:
        """Return the read-only entry of a key. None on a miss."""
        with self._lock.lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Store an entry; drop the least recently used ones above the limit."""
        size = _size(key, entry)
        if size > self._max_bytes:
            return
        vector, base = entry.vector, entry.vector.base
        # An array over bytes stays read-only. An array that owns its memory could be made writable again, and one over
        # more than a row would keep that in memory.
        if not isinstance(base, bytes) or len(base) > vector.nbytes + _OVERHEAD_BYTES:
            vector = np.frombuffer(vector.tobytes(), dtype=vector.dtype)
        with self._lock.lock:
            old = self._entries.pop(key, None)
            self._bytes += size - (_size(key, old) if old is not None else 0)
            self._entries[key] = Entry(vector, entry.truncated)
            while self._bytes > self._max_bytes:
                dropped_key, dropped = self._entries.popitem(last=False)
                self._bytes -= _size(dropped_key, dropped)

    def __len__(self) -> int:
        return len(self._entries)


def _size(key: bytes, entry: Entry) -> int:
    return len(key) + entry.vector.nbytes + _OVERHEAD_BYTES
