"""The hot queries of a process, kept in memory before any cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import Entry

_OVERHEAD_BYTES = 400  # what an entry costs beside its key and numbers: dict slot, tuple, array, bytes object


class MemoryTier:
    """The entries used last, within a bound in bytes; every thread may use it, and a forked child keeps its own.

    Entries are held as copies that nobody can write to, not even who holds them.
    """

    def __init__(self, max_bytes: int = 32 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lock = ForkLock()

    def get(self, key: bytes) -> Entry | None:
        """Give the entry of a key, read-only, or None."""
        with self._lock.lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Give the entries there are, as `get` does."""
        found: dict[bytes, Entry] = {}
        with self._lock.lock:
            for key in keys:
                entry = self._entries.get(key)
                if entry is not None:
                    self._entries.move_to_end(key)
                    found[key] = entry
        return found

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry, and let go of those used longest ago where it takes their room."""
        size = _size(key, entry)
        if size > self._max_bytes:
            return
        # An array over bytes cannot be made writeable again, one that owns its numbers can.
        vector = np.frombuffer(entry.vector.tobytes(), dtype=entry.vector.dtype)
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
