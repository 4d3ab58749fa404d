"""Several caches as one: the first is read first, and all are written, the others in the background."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from embedkit_core.cache.access import CacheReader, DeferredWrites, Found, Items, OpenCache, exclusive_writes
from embedkit_core.common.errors import ConfigurationError, EmbedKitError
from embedkit_core.common.fork_safety import ForkLock, register_after_fork
from embedkit_core.common.threads import TIERS_THREAD, WakeFlag, start_thread
from embedkit_core.common.types import Entry
from embedkit_core.common.vectors import VectorSpace

ROWS_PER_WRITE = 512  # of the background thread: a write with so many rows gets no further job
MAX_QUEUED_BYTES = 128 << 20  # of vectors that wait for the background thread
MAX_QUEUE_WAIT = 2.0  # seconds that a write waits for room in the queue; then it counts as failed
FLUSH_SECONDS = 5.0  # that `close` and the end of the process wait for the background thread
IDLE_SECONDS = 5.0  # until the background thread ends

logger = logging.getLogger("embedkit_core.cache")


class _Job(NamedTuple):
    """Entries that the background thread writes.

    Attributes:
        items: The entries.
        tiers: The indices of the tiers to write to.
        done: Called when all of them were written to, or failed.
        size: The bytes of the vectors.
    """

    items: Items
    tiers: range
    done: Callable[[], None]
    size: int


class CacheTiers(DeferredWrites):
    """Several caches as one.

    A read asks the tiers in order, each for what those before it lack. A write ends when the first tier has the
    entries; a background thread writes the other tiers. A tier that fails counts as empty. Failures are counted, and
    the first of each tier is logged.

    Attributes:
        tiers: The caches, the first to be read first.
        may_block: True if one of them may take long.
    """

    def __init__(self, tiers: Sequence[OpenCache]) -> None:
        self.tiers = tuple(tiers)
        self.may_block = any(tier.may_block for tier in tiers)
        self._failures = 0
        self._logged: set[int] = set()
        self._readers = [CacheReader(tier) for tier in tiers]
        self._lock = ForkLock()
        register_after_fork(self)
        self.after_fork_in_child()
        _all_tiers.add(self)

    def after_fork_in_child(self) -> None:
        """Drop the parent's queue and thread, which writes what is in it."""
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._progress = WakeFlag()  # the thread has made room in the queue
        self._is_stuck = False
        self._thread: threading.Thread | None = None

    @property
    def write_failures(self) -> int:
        """The number of vectors that could not be written, summed over the tiers."""
        return self._failures + sum(tier.write_failures for tier in self.tiers)

    # Reads

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are in any tier, by key."""
        found: dict[bytes, Entry] = {}
        for block in self.read(keys, None):
            found |= block
        return found

    def read(self, keys: Sequence[bytes], space: VectorSpace | None) -> Iterator[Found]:
        """Yield the entries that are in any tier, block by block.

        With the vector space, what a lower tier has is copied into the tiers above in the background: after the read,
        which it would slow down, or during it if there is much to copy.
        """
        missing, copies, size, max_wait = keys, list[tuple[range, Items]](), 0, 0.0
        for index, reader in enumerate(self._readers):
            if not missing:
                break
            found_here: set[bytes] = set()
            for found in reader.read(missing):
                found_here.update(found)
                if index and found and space is not None:
                    copies.append((range(index), _with_space(found, space)))
                    size += _bytes_of(copies[-1][1])
                yield found
                if size > MAX_QUEUED_BYTES // 2:
                    max_wait = MAX_QUEUE_WAIT
                    self._copy_up(copies, max_wait)
                    copies, size = [], 0
            missing = [key for key in missing if key not in found_here]
        self._copy_up(copies, max_wait)

    def _copy_up(self, copies: Sequence[tuple[range, Items]], max_wait: float) -> None:
        """Queue the writing of entries to the tiers of their range; drop them if the queue stays full."""
        for above, items in copies:
            self._put(items, above, _nothing, max_wait=max_wait)

    # Writes

    def set_many(self, items: Items) -> None:
        """Store entries in all tiers; existing values are replaced."""
        for index in range(len(self.tiers)):
            self._write(index, items)

    def set_many_then(self, items: Items, done: Callable[[], None]) -> None:
        """Store entries in the first tier, and in the background in the others; call `done` after that."""
        self._write(0, items)
        others = range(1, len(self.tiers))
        if not self._put(items, others, done, max_wait=MAX_QUEUE_WAIT):
            for index in others:
                self._count_failure(index, len(items), "its queue is full")
            done()

    def flush(self, timeout: float) -> None:
        """Wait until the background thread has written what is queued, for up to `timeout` seconds."""
        written = WakeFlag()
        with self._lock.lock:
            if self._thread in (None, threading.current_thread()):
                return
            self._jobs.put(_Job((), range(0), written.set, 0))
        written.wait(timeout)

    def close(self) -> None:
        """Write what is queued, and close the caches that the library has opened. The next call opens them again."""
        self.flush(FLUSH_SECONDS)
        for tier in self.tiers:
            if tier.owned:
                tier.cache.close()

    def _write(self, index: int, items: Items) -> None:
        """Write entries to one tier. A failure is counted."""
        cache = self.tiers[index].cache
        try:
            with exclusive_writes(cache):
                cache.set_many(items)
        except BaseException as error:  # a user's cache must not make a call fail
            self._count_failure(index, len(items), type(error).__name__)

    def _count_failure(self, index: int, n_vectors: int, reason: str) -> None:
        with self._lock.lock:
            self._failures += n_vectors
            is_first = index not in self._logged
            self._logged.add(index)
        if is_first:
            with contextlib.suppress(BaseException):  # a user's log handler may raise
                logger.warning(
                    "Cache tier %s (%s) could not be written (%s); its vectors may be missing there. Further failures "
                    "are not logged.",
                    index + 1,
                    type(self.tiers[index].cache).__name__,
                    reason,
                )

    # The background thread

    def _put(self, items: Items, tiers: range, done: Callable[[], None], *, max_wait: float) -> bool:
        """Queue entries for the background thread. Return False if the queue is full, or no thread can be started."""
        size = _bytes_of(items)
        if not self._wait_for_room(size, 0.0 if self._is_stuck else max_wait):
            self._is_stuck |= max_wait > 0.0
            return False
        with self._lock.lock:
            if self._thread is None:
                try:
                    self._thread = start_thread(self._run, TIERS_THREAD)
                except EmbedKitError:
                    return False
            self._queued_bytes += size
            self._jobs.put(_Job(items, tiers, done, size))
        return True

    def _wait_for_room(self, size: int, seconds: float) -> bool:
        """Wait until the queue has room. One job has always room in an empty queue."""
        until = time.monotonic() + seconds
        while self._queued_bytes and self._queued_bytes + size > MAX_QUEUED_BYTES:
            self._progress.clear()
            if self._queued_bytes and not self._progress.wait(max(0.0, until - time.monotonic())):
                return False
        return True

    def _run(self) -> None:
        jobs = self._jobs
        while True:
            try:
                job = jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock.lock:
                    if jobs.empty():
                        self._thread = None
                        return
                continue
            batch = [job]
            while not jobs.empty() and sum(len(job.items) for job in batch) < ROWS_PER_WRITE:
                batch.append(jobs.get())
            self._write_batch(batch)
            del job, batch  # they keep the results of callers alive

    def _write_batch(self, batch: Sequence[_Job]) -> None:
        for index in range(len(self.tiers)):
            items = {key: entry for job in batch if index in job.tiers for key, entry in job.items}
            if items:
                self._write(index, list(items.items()))
        with self._lock.lock:
            self._queued_bytes -= sum(job.size for job in batch)
        self._is_stuck = False
        self._progress.set()
        for job in batch:
            job.done()

    def __repr__(self) -> str:
        return f"CacheTiers({', '.join(type(tier.cache).__name__ for tier in self.tiers)})"


_all_tiers: weakref.WeakSet[CacheTiers] = weakref.WeakSet()
_open_tiers: weakref.WeakValueDictionary[tuple[int, ...], CacheTiers] = weakref.WeakValueDictionary()
_lock = ForkLock()


def open_tiers(tiers: Sequence[OpenCache]) -> CacheTiers:
    """Return the tiers of these caches; callers with the same caches share one object.

    Raises:
        ConfigurationError: Two of them are the same cache.
    """
    different = {id(tier.redis_connection or tier.cache) for tier in tiers}
    if len(different) < len(tiers):
        raise ConfigurationError("cache: a list must not contain the same cache twice. Remove one of them.")
    ids = tuple(id(tier.cache) for tier in tiers)  # of no other caches as long as the tiers live
    with _lock.lock:
        shared = _open_tiers.get(ids)
        if shared is None:
            shared = _open_tiers[ids] = CacheTiers(tiers)
        return shared


def _with_space(found: Found, space: VectorSpace) -> Items:
    """Return entries of a vector space, with its name."""
    names = {width: space.name_of_row(width) for width in {len(entry.vector) for entry in found.values()}}
    return [(key, entry._replace(space=names[len(entry.vector)])) for key, entry in found.items()]


def _bytes_of(items: Items) -> int:
    return sum(entry.vector.nbytes for _, entry in items)


def _nothing() -> None:
    """Do nothing: no caller waits for the copy of a vector in another tier."""


@atexit.register
def _flush_all() -> None:
    for tiers in list(_all_tiers):
        tiers.flush(FLUSH_SECONDS)
