"""The thread that keeps rows: one transaction for whatever arrived meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from embedkit_core.engine.items import Flight
from embedkit_core.types import Cache, Entry

if TYPE_CHECKING:
    from embedkit_core.engine.account import Account

logger = logging.getLogger("embedkit_core")


Job: TypeAlias = "tuple[Account, Flight]"


class Writer:
    """Writes the rows of answered requests to their caches, then calls `kept` with the same jobs.

    A write that fails is counted in `failures` and logged once a cache; the answer is given all the same. The queue
    is bounded by the requests in flight: a slot is free again only after `kept`.
    """

    def __init__(self, kept: Callable[[list[Job]], None]) -> None:
        self._kept = kept
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._complained: set[int] = set()
        self.failures = 0

    def put(self, job: Job) -> None:
        """Hand over an answered request; called on the loop thread only."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="embedkit-writer", daemon=True)
            self._thread.start()
        self._queue.put(job)

    def stop(self, timeout: float) -> None:
        """Write what was handed over, then end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            jobs = [first]
            last = False
            while not self._queue.empty() and not last:
                more = self._queue.get()
                last = more is None
                if more is not None:
                    jobs.append(more)
            self._write([flight for _, flight in jobs])
            self._kept(jobs)
            if last:
                return

    def _write(self, flights: list[Flight]) -> None:
        batches: dict[Cache, list[tuple[bytes, Entry]]] = {}
        for flight in flights:
            rows = flight.rows
            assert rows is not None
            for cache, places in flight.to_keep().items():
                batch = batches.setdefault(cache, [])
                batch.extend((flight.done[p].key, Entry(rows[p], flight.flags[p])) for p in places)
        for cache, items in batches.items():
            try:
                cache.set_many(items)
            except Exception as error:  # a cache may be anybody's, and must not cost an answer
                self.failures += len(items)
                if id(cache) not in self._complained:
                    self._complained.add(id(cache))
                    logger.warning("vectors could not be written to the cache (%s)", type(error).__name__)
