"""What the workers tell the driver: the batches that they begin and end, and their usage. No I/O."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import NamedTuple

from embedkit_core.common.usage import Usage

MAX_WAIT = 1.0  # seconds that the end of a batch waits for the driver


class Life(NamedTuple):
    """A process of a worker.

    Attributes:
        run: The run that the worker belongs to.
        worker: The worker. It stays the same if Ray starts its process again.
        process: The process.
    """

    run: str
    worker: str
    process: str


class Ledger:
    """Counts attempts and usage for all runs of a driver. All methods run on one event loop.

    A batch that a process has begun and not ended is one during which the process died, or runs still. After a death,
    Ray gives the batch to the same worker again, in another process.
    """

    def __init__(self) -> None:
        self._unended: defaultdict[tuple[str, str, bytes], set[str]] = defaultdict(set)
        self._new: dict[str, Usage] = {}  # by run, what the driver has not collected
        self._reported = self._handed_out = self._collected = 0  # numbers of reports
        self._closed = False
        self._changed = asyncio.Condition()

    async def begin(self, life: Life, batch: bytes) -> int:
        """Note that a process begins a batch. Return how many processes of the worker have begun and not ended it."""
        processes = self._unended[life.run, life.worker, batch]
        processes.add(life.process)
        return len(processes)

    async def report(self, life: Life, usage: Usage) -> None:
        """Add usage of a process since its last report."""
        async with self._changed:
            self._new[life.run] = self._new.get(life.run, Usage()) + usage
            self._reported += 1
            self._changed.notify_all()

    async def end(self, life: Life, batch: bytes, usage: Usage, wait: float = MAX_WAIT) -> None:
        """Note that a process has ended a batch, with vectors or an error. Return when the driver has its usage.

        A driver that is busy delays a worker by at most `wait` seconds.
        """
        self._unended.pop((life.run, life.worker, batch), None)
        await self.report(life, usage)
        number = self._reported
        with suppress(TimeoutError):
            async with asyncio.timeout(wait), self._changed:
                await self._changed.wait_for(lambda: self._collected >= number)

    async def collect(self) -> dict[str, Usage]:
        """Return the usage of each run since the last call, when there is any. The driver has what that returned.

        After `close`, it returns at once.
        """
        async with self._changed:
            self._collected = self._handed_out
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._new or self._closed)
            self._handed_out = self._reported
            new, self._new = self._new, {}
            return new

    async def close(self) -> None:
        """End the driver's last call of `collect`."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()
