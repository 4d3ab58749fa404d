"""Writer thread: writes the rows of replies to caches, several requests in one transaction."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from embedkit_core.cache.access import DeferredWrites, exclusive_writes
from embedkit_core.common.threads import start_thread
from embedkit_core.common.types import Cache, Entry

if TYPE_CHECKING:
    from embedkit_core.engine.scheduler.queues import Request

logger = logging.getLogger("embedkit_core.cache")

MAX_ROWS_PER_COMMIT = 128  # a transaction with so many rows gets no further request


class WriteJob(NamedTuple):
    """A request whose rows are to be written.

    Attributes:
        request: The request.
        writes: The caches to write to, each with its rows as indices of `request.done`.
        written: Called with the request on the writer thread afterwards, also after a failure; and with True if the
            rows are stored wherever other machines read them.
        stored: Called with the request on any thread as soon as that is so, if `written` was called with False.
    """

    request: Request
    writes: list[tuple[Cache, list[int]]]
    written: Callable[[Request, bool], None]
    stored: Callable[[Request], None]


class _Countdown:
    """A function that calls another one when it was called `n` times, on any threads."""

    def __init__(self, n: int, action: Callable[[], None]) -> None:
        self._n = n
        self._action = action
        self._calls = itertools.count(1)

    def __call__(self) -> None:
        if next(self._calls) == self._n:
            self._action()


def _report_stored(jobs: list[WriteJob]) -> None:
    for job in jobs:
        job.stored(job.request)


class CacheWriter:
    """Writes the rows of requests to their caches, then calls each job's `written`.

    The queue is bounded by the requests in flight: a slot is free only after `written`.

    Attributes:
        thread: The writer thread.
        failures: The number of rows that could not be written. The first failure of each cache is logged; callers get
            their rows all the same.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[WriteJob | None] = queue.SimpleQueue()
        self._logged: set[int] = set()
        self._deferred: weakref.WeakSet[DeferredWrites] = weakref.WeakSet()
        self.failures = 0
        self.thread = start_thread(self._run, "embedkit-writer")

    def put(self, job: WriteJob) -> None:
        """Queue a job."""
        self._queue.put(job)

    def stop(self, timeout: float) -> None:
        """Write the queued jobs, also where caches write in the background, then end the thread."""
        until = time.monotonic() + timeout
        self._queue.put(None)
        self.thread.join(timeout)
        for cache in list(self._deferred):
            cache.flush(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """Wait for a job and write it with those that came meanwhile. Return False if the writer was stopped.

        The rows per transaction are bounded: a slot is free only after the commit, and several smaller commits keep
        more slots busy. No job is referenced while it waits for the next one: a job keeps the caller's result alive.
        """
        jobs: list[WriteJob] = []
        more = self._queue.get()
        while more is not None:
            jobs.append(more)
            if self._queue.empty() or sum(len(job.request.done) for job in jobs) >= MAX_ROWS_PER_COMMIT:
                break
            more = self._queue.get()
        if jobs:
            stored = self._write(jobs)
            for job in jobs:
                job.written(job.request, stored is None)
            if stored is not None:
                stored()  # only now, so that `written` comes before `stored`
        return more is not None

    def _write(self, jobs: list[WriteJob]) -> Callable[[], None] | None:
        """Write jobs to their caches.

        Returns:
            A function to call when each `written` was called, if a cache stores the rows elsewhere in the background.
        """
        batches: dict[int, tuple[Cache, list[tuple[bytes, Entry]]]] = {}
        for request, writes, _, _ in jobs:
            rows = request.rows
            assert rows is not None
            rows.flags.writeable = False  # caches get views, and callers get the same rows
            spec = request.queue.spec
            space = None if spec.space is None else spec.space.name_of_row(rows.shape[1])
            for cache, indices in writes:
                items = batches.setdefault(id(cache), (cache, []))[1]
                items += [(request.done[i].key, Entry(rows[i], request.truncated[i], space)) for i in indices]
        stored, n_deferred = None, sum(isinstance(cache, DeferredWrites) for cache, _ in batches.values())
        if n_deferred:
            stored = _Countdown(n_deferred + 1, partial(_report_stored, jobs))
        for cache, items in batches.values():
            try:
                with exclusive_writes(cache):
                    if stored is not None and isinstance(cache, DeferredWrites):
                        self._deferred.add(cache)
                        cache.set_many_then(items, stored)
                    else:
                        cache.set_many(items)
            except BaseException as error:  # a user's cache must not make a call fail
                self.failures += len(items)
                self._log_failure(cache, error)
        return stored

    def _log_failure(self, cache: Cache, error: BaseException) -> None:
        if id(cache) not in self._logged:
            self._logged.add(id(cache))
            with contextlib.suppress(BaseException):  # a user's log handler may raise
                logger.warning("Cache write failed with %s; vectors are not cached", type(error).__name__)
