"""The leases of other processes, by key, so that a request finds them without a statement for each text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from embedkit_core.coordination.local.rows import Execute

PREFIX_BYTES = 8  # of each key; the texts of one machine that are in flight do not share them by chance
_SMALLEST_LIMIT = 20_000  # prefixes


class Mirror:
    """The newest lease of another process for each key prefix, as far as this process has read them.

    What it finds must be looked up: a lease may have ended, or be forgotten.
    """

    def __init__(self) -> None:
        self._leases: dict[int, int] = {}
        self._limit = _SMALLEST_LIMIT
        self.clear()

    def clear(self) -> None:
        """Forget everything, so that the next call reads all leases."""
        self._leases.clear()
        self._last = 0

    def read(self, execute: Execute, owner: int) -> None:
        """Read the leases that are new since the last call."""
        self._update(execute, owner)
        if len(self._leases) > self._limit:  # drop those that are forgotten
            self.clear()
            self._update(execute, owner)
            self._limit = max(_SMALLEST_LIMIT, 2 * len(self._leases))

    def _update(self, execute: Execute, owner: int) -> None:
        for lease, its_owner, blob in execute(
            "SELECT id, owner, keys FROM Leases WHERE id > ? ORDER BY id", (self._last,)
        ):
            self._last = lease
            if its_owner != owner:
                self._leases.update(dict.fromkeys(array("Q", blob), lease))

    def skip(self, lease: int) -> None:
        """Note that this process has added a lease, and has read all before it."""
        self._last = lease

    def find(self, prefixes: Sequence[int]) -> dict[int, int]:
        """Return the lease of each prefix that has one, by index."""
        leases = self._leases
        if leases.keys().isdisjoint(prefixes):
            return {}
        return {index: leases[prefix] for index, prefix in enumerate(prefixes) if prefix in leases}


def pack(keys: Sequence[bytes]) -> bytes:
    """Return the prefixes of keys, one after the other."""
    packed = b"".join([key[:PREFIX_BYTES] for key in keys])
    if len(packed) != PREFIX_BYTES * len(keys):
        packed = b"".join([key[:PREFIX_BYTES].ljust(PREFIX_BYTES, b"\0") for key in keys])
    return packed


def prefixes(keys: Sequence[bytes]) -> array[int]:
    """Return the prefixes of keys as numbers."""
    return array("Q", pack(keys))
