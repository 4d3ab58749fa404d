"""Counters of a built-in cache's failures. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Stats:
    """Failures of a cache in this process.

    Attributes:
        write_failures: Vectors that could not be written.
        damaged: Values that were damaged when they were read.
        quarantined: Databases that were quarantined.
    """

    write_failures: int = 0
    damaged: int = 0
    quarantined: int = 0
