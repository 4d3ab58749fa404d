"""Threads of the library: how they start, and the workers that keep blocking work off event loops."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.common.fork_safety import ForkLock, register_after_fork

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")
EXIT_SECONDS = 2.0  # at exit, for jobs that are running
TIERS_THREAD = "embedkit-tiers"  # the name of threads that write caches in the background


def start_thread(run: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread with an empty context, so that it inherits no context variables of the caller.

    Raises:
        EmbedKitError: The process cannot have another thread.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        contextvars.Context().run(thread.start)
    except RuntimeError as error:
        raise EmbedKitError(
            f"The thread {name} cannot be started ({error}). Raise the limit of threads (ulimit -u, the pids limit of "
            "the container) or of memory, or end other threads; then call again."
        ) from None
    return thread


class WakeFlag:
    """An event for a thread that a signal handler may interrupt at any time.

    A `threading.Event` holds a lock for a moment in `wait`. If a handler interrupted the thread there and waited for
    the engine, whose thread needs that lock in `set`, both would wait forever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while the flag is not set
        self._lock.acquire()

    def is_set(self) -> bool:
        """Return True if the flag is set."""
        return not self._lock.locked()

    def set(self) -> None:
        """Set the flag and wake the thread that waits."""
        with contextlib.suppress(RuntimeError):  # it is set
            self._lock.release()

    def clear(self) -> None:
        """Reset the flag."""
        self._lock.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, up to `timeout` seconds. Return True if it is set."""
        is_set = self._lock.acquire(timeout=-1 if timeout is None else timeout)
        if is_set:
            self.set()
        return is_set


class WorkerPool:
    """A few daemon threads, each started when all others are busy. A forked child starts its own.

    Args:
        name: The name of the threads.
        size: The most threads.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._lock = ForkLock()
        register_after_fork(self)
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Drop the parent's jobs and threads, which do not exist in a child."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._unfinished: set[Callable[[], None]] = set()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job, which must not raise, on a thread.

        Raises:
            EmbedKitError: No thread can be started. The job does not run.
        """
        self._unfinished.add(job)
        if len(self._threads) < min(self._size, len(self._unfinished)):
            try:
                self._start_thread()
            except EmbedKitError:
                if not self._threads:
                    self._unfinished.discard(job)
                    raise
        self._jobs.put(job)

    def stop(self, timeout: float = EXIT_SECONDS) -> None:
        """End the threads after the submitted jobs; wait up to `timeout` seconds for each."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(timeout)

    def _start_thread(self) -> None:
        with self._lock.lock:
            if len(self._threads) < self._size:
                self._threads.append(start_thread(self._run, self._name))

    def _run(self) -> None:
        jobs, unfinished = self._jobs, self._unfinished
        while (job := jobs.get()) is not None:
            job()
            unfinished.discard(job)
            del job  # free what it holds while the thread waits


# Several pools, so that the look-up of a query and a new connection do not wait for bulk work, nor for a network.
LOOKUPS = WorkerPool("embedkit-lookup", 2)
SLOW_LOOKUPS = WorkerPool("embedkit-slow-lookup", 16)  # each may wait for a network
BULK = WorkerPool("embedkit-work", 2)
JOBS = WorkerPool("embedkit-jobs", 16)  # of batch jobs; each may upload or download a file


async def off_loop(work: Callable[[], T], pool: WorkerPool) -> T:
    """Run blocking work on a thread of a pool and await its result. A cancelled caller does not stop it."""
    loop = running_loop()
    done: asyncio.Future[None] = loop.create_future()
    results: list[T] = []
    errors: list[BaseException] = []

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def job() -> None:
        if done.cancelled():
            return
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            loop.call_soon_threadsafe(finish)

    pool.submit(job)
    await done
    if errors:
        raise errors.pop()
    return results.pop()


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of asyncio.

    Raises:
        EmbedKitError: There is none: the caller runs in trio, or in no event loop.
    """
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise EmbedKitError(
            "Async methods need a running event loop of asyncio. In trio, call the sync method in a thread, such as "
            "await trio.to_thread.run_sync(embedder.embed_query, text)."
        ) from None
