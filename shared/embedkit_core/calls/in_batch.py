"""Texts of a call that are in an open batch job: paid for, waited for, or refused."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from embedkit_core.calls.lookup import CacheLookup
from embedkit_core.calls.plan import Plan
from embedkit_core.common.errors import JobError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.formatting import count_noun
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.coordination.journal.schema import DATABASE, FOLDER

if TYPE_CHECKING:
    from embedkit_core.coordination.journal.journal import Journal

FIRST_POLL_SECONDS, LONGEST_POLL_SECONDS, POLL_GROWTH = 5.0, 60.0, 1.5

logger = logging.getLogger("embedkit_core.batches")


def heed_jobs(
    embedder: BaseEmbedder,
    plan: Plan,
    lookup: CacheLookup,
    until: float,
    has_left: Callable[[], bool],
) -> bool:
    """Do what `in_batch` says about documents that the cache lacks and that are in open batch jobs.

    Args:
        embedder: The embedder, with a cache folder.
        plan: The texts of the call.
        lookup: The lookup, which is closed before a wait.
        until: The deadline of the call, by `time.monotonic`.
        has_left: Returns True if the caller does not wait any more.

    Returns:
        True if the cache must be read again: jobs were waited for, or may have released texts since it was read.

    Raises:
        JobError: Texts are in open jobs, and `in_batch` is "error"; or the deadline has passed.
        ProviderError, CacheError, BudgetError: A job that is waited for cannot be collected.
    """
    mode, folder = embedder.settings.in_batch, embedder.jobs_folder
    assert folder is not None
    if mode == "pay" and embedder.batch_logged.is_set():
        return False
    if not (folder / FOLDER / DATABASE).exists():
        return False
    journal: Journal = import_module("embedkit_core.coordination.journal.journal").Journal(folder)
    try:
        jobs = Counter(journal.claimed([plan.keys[index] for index in lookup.misses]).values())
    except JobError as error:
        if mode != "pay":
            raise
        embedder.batch_logged.set()
        logger.warning("%s Texts of open jobs are paid for again.", error)
        return False
    if not jobs and mode != "wait":
        return False
    verb = "is" if jobs.total() == 1 else "are"
    described = f"{jobs.total():,} of {count_noun(len(lookup.misses), 'text')} to send {verb} in open batch jobs"
    names = ", ".join(list(jobs)[:3])
    if mode == "pay":
        embedder.batch_logged.set()
        logger.warning(
            "%s: %s (%s) and will be paid for again; in_batch='wait' or 'error' prevents it. Logged once per embedder.",
            *(embedder.model, described, names),
        )
        return False
    if mode == "error":
        raise JobError(f"{described} ({names}). Collect the jobs first, or use in_batch='wait'.")
    if jobs:
        logger.info("%s: %s (%s), which the call waits for", embedder.model, described, names)
    lookup.close()
    while jobs and not has_left():
        _wait(embedder, set(jobs), until, has_left)
        jobs = Counter(journal.claimed([plan.keys[index] for index in lookup.misses]).values())
    return True


def _wait(embedder: BaseEmbedder, jobs: set[str], until: float, has_left: Callable[[], bool]) -> None:
    """Collect jobs until nothing of them is open."""
    pause = FIRST_POLL_SECONDS
    while True:
        jobs = {job for job in jobs if not embedder.collect_job(job)}
        if not jobs or has_left():
            return
        left = until - time.monotonic()
        if left <= 0:
            raise JobError(
                f"Texts are in open batch jobs ({', '.join(sorted(jobs))}), which have not finished before deadline=. "
                "Call again later, or use in_batch='pay'."
            )
        time.sleep(min(pause, left))
        pause = min(pause * POLL_GROWTH, LONGEST_POLL_SECONDS)
