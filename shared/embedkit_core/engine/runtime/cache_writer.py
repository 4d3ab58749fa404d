"""The thread that keeps rows: one transaction for whatever arrived meanwhile."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.types import Cache, Entry

if TYPE_CHECKING:  # a warm start loads this module for its lock, and no scheduler
    from embedkit_core.engine.scheduler.queues import Request

logger = logging.getLogger("embedkit_core")


write_lock = (
    ForkLock()
)  # to write to a cache: `set_many` is called from one thread at a time, also by who imports vectors


MAX_ROWS_PER_COMMIT = 128  # rows, after which a transaction takes in no further request


class WriteJob(NamedTuple):
    """Rows of an answered request, and for each cache the places of those to write; `written` is called afterwards."""

    request: Request
    writes: list[tuple[Cache, list[int]]]
    written: Callable[[], None]


class CacheWriter:
    """Writes the rows of answered requests to their caches, then calls each job's `written`.

    A write that fails is counted in `failures` and logged once a cache; the answer is given all the same. The queue
    is bounded by the requests in flight: a slot is free again only after `written`.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[WriteJob | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self._logged: set[int] = set()
        self.failures = 0

    def put(self, job: WriteJob) -> None:
        """Hand over an answered request; called on the loop thread only."""
        if self.thread is None:
            thread = threading.Thread(target=self._run, name="embedkit-writer", daemon=True)
            thread.start()
            self.thread = thread
        self._queue.put(job)

    def stop(self, timeout: float) -> None:
        """Write what was handed over, then end."""
        if self.thread is not None:
            self._queue.put(None)
            self.thread.join(timeout)

    def _run(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """Wait for a job, write it with what came meanwhile, and tell whether there may be more.

        Not with all of it: the slots of these requests are free only when it is written, and one after the other keeps
        more of them busy than all at once. Between two turns nothing holds a job, and by it a caller's whole result.
        """
        jobs: list[WriteJob] = []
        more = self._queue.get()
        while more is not None:
            jobs.append(more)
            if self._queue.empty() or sum(len(job.request.done) for job in jobs) >= MAX_ROWS_PER_COMMIT:
                break
            more = self._queue.get()
        if jobs:
            self._write(jobs)
            for job in jobs:
                job.written()
        return more is not None

    def _write(self, jobs: list[WriteJob]) -> None:
        batches: dict[int, tuple[Cache, list[tuple[bytes, Entry]]]] = {}
        for request, keep, _ in jobs:
            rows = request.rows
            assert rows is not None
            rows.flags.writeable = False  # a cache is given a view, and must not change what callers get
            for cache, places in keep:
                items = batches.setdefault(id(cache), (cache, []))[1]
                items += [(request.done[p].key, Entry(rows[p], request.truncated[p])) for p in places]
        for cache, items in batches.values():
            try:
                with write_lock.lock:
                    cache.set_many(items)
            except BaseException as error:  # a cache may be anybody's, and must not cost an answer
                self.failures += len(items)
                self._log_failure(cache, error)

    def _log_failure(self, cache: Cache, error: BaseException) -> None:
        if id(cache) not in self._logged:
            self._logged.add(id(cache))
            with contextlib.suppress(BaseException):  # log handlers are the user's
                logger.warning("vectors could not be written to the cache (%s)", type(error).__name__)
