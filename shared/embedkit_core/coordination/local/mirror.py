"""The leases of other processes, by key, so that a request finds them without a statement for each text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from embedkit_core.coordination.local.rows import Execute
from embedkit_core.coordination.port import PREFIX_BYTES

_SMALLEST_LIMIT = 20_000  # prefixes
_MASK = np.uint64(0xFFFF)  # of a prefix: the hash by which most of them are ruled out


class Mirror:
    """The key prefixes of the leases of other processes, as far as this process has read them.

    What it finds must be looked up: a lease may have ended, or be forgotten. Adding the prefixes to a dict would take
    several times as long as all else in a busy process, which adds those of all others and looks up only its own.
    """

    def __init__(self) -> None:
        self._limit = _SMALLEST_LIMIT
        self.clear()

    def clear(self) -> None:
        """Forget everything, so that the next call reads all leases."""
        self._last = 0
        self._size = 0
        self._prefixes = np.empty(0, np.uint64)
        self._hashes = np.empty(0, np.intp)
        self._leases: list[int] = []
        self._starts: list[int] = []  # of the prefixes of each lease

    def refresh(self, execute: Execute, owner: int) -> None:
        """Read many leases outside of a transaction: all at first, and again when many are forgotten."""
        if self._last == 0 or self._size > self._limit:
            self.clear()
            self.read(execute, owner)
            self._limit = max(_SMALLEST_LIMIT, self._size + self._size // 2)

    def read(self, execute: Execute, owner: int) -> None:
        """Read the leases that are new since the last call."""
        rows = execute("SELECT id, owner, keys FROM Leases WHERE id > ? ORDER BY id", (self._last,)).fetchall()
        if not rows:
            return
        self._last = rows[-1][0]
        others = [(lease, packed) for lease, its_owner, packed in rows if its_owner != owner and packed]
        added = np.frombuffer(b"".join([packed for _, packed in others]), np.uint64)
        self._reserve(self._size + len(added))
        self._prefixes[self._size : self._size + len(added)] = added
        self._hashes[self._size : self._size + len(added)] = added & _MASK
        for lease, packed in others:
            self._leases.append(lease)
            self._starts.append(self._size)
            self._size += len(packed) // PREFIX_BYTES

    def skip(self, lease: int) -> None:
        """Note that this process has added a lease, and has read all before it."""
        self._last = lease

    def find(self, packed: bytes) -> dict[int, int]:
        """Return the newest lease of each packed prefix that has one, by index."""
        if not self._size:
            return {}
        own, place = np.unique(np.frombuffer(packed, np.uint64), return_inverse=True)
        table = np.zeros(int(_MASK) + 1, np.bool_)
        table[own & _MASK] = True
        at = np.flatnonzero(table.take(self._hashes[: self._size]))
        candidates = self._prefixes[at]
        nearest = np.searchsorted(own, candidates).clip(max=len(own) - 1)
        same = own[nearest] == candidates
        leases = {
            known: self._leases[bisect_right(self._starts, position) - 1]
            for known, position in zip(nearest[same].tolist(), at[same].tolist(), strict=True)
        }
        if not leases:
            return {}
        return {index: leases[known] for index, known in enumerate(place.tolist()) if known in leases}

    def _reserve(self, size: int) -> None:
        if size > len(self._prefixes):
            room = np.empty(max(size, 2 * len(self._prefixes)) - self._size, np.uint64)
            self._prefixes = np.concatenate([self._prefixes[: self._size], room])
            self._hashes = np.concatenate([self._hashes[: self._size], room.astype(np.intp)])


def pack(keys: Sequence[bytes]) -> bytes:
    """Return the prefixes of keys, one after the other."""
    packed = b"".join([key[:PREFIX_BYTES] for key in keys])
    if len(packed) != PREFIX_BYTES * len(keys):
        packed = b"".join([key[:PREFIX_BYTES].ljust(PREFIX_BYTES, b"\0") for key in keys])
    return packed
