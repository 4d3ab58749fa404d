"""Live usage: the one mutable counter that caller threads and the engine write to."""

from __future__ import annotations

from embedkit_core.forks import ForkLock
from embedkit_core.types import Usage


class Meter:
    """A running total of `Usage`, safe to add to from any thread."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._total = Usage()

    def add(self, usage: Usage) -> None:
        """Add to the total."""
        with self._lock.lock:
            self._total += usage

    def read(self) -> Usage:
        """Give the total so far."""
        return self._total
