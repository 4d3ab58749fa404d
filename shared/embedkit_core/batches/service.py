"""The jobs of a cache folder, as one embedder sees them: submission and the steps that move a job forward."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from embedkit_core.batches import files
from embedkit_core.batches.money import JobMoney
from embedkit_core.batches.prepare import Preparation
from embedkit_core.batches.runner import JobRunner
from embedkit_core.batches.threads import run
from embedkit_core.common.errors import ConfigurationError, EmbedKitError, JobError
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.locks import FileLock
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.tracker import UsageTracker
from embedkit_core.providers.batch_endpoint import BatchEndpoint, open_endpoint

Trackers: TypeAlias = tuple[UsageTracker, ...]  # that are active for the caller
SUBMIT_SECONDS = 60.0  # that `submit` repeats what fails for a while, before it leaves the rest to the next step
KEEP_EMPTY_SECONDS = 86_400.0  # that a job is kept whose texts needed no batch
LOCK_PAUSE = 0.1  # seconds between two attempts
WARNING_SECONDS = 10.0  # of waiting for a lock, before a warning: its holder may be stopped
UNSENT_STEPS = ("PREPARED", "UPLOADING", "UPLOADED")

_preparing = threading.local()  # folder: that of the job that this thread prepares
logger = logging.getLogger("embedkit_core.batches")


class JobService:
    """Submits jobs and moves them forward.

    Args:
        embedder: The embedder, with a cache folder.
        specs: Its specifications by input type.
        embed: Embeds texts with normal requests.

    Raises:
        ConfigurationError: The embedder has no cache folder.
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        specs: Mapping[str, InputTypeSpec],
        embed: Callable[..., EmbeddingResult],
    ) -> None:
        self._embedder = embedder
        self._specs = specs
        self._embed = embed
        folder = embedder.jobs_folder
        if folder is None:
            raise ConfigurationError(
                "cache: batch jobs need a cache folder, which receives their vectors. Use an embedder with cache=None, "
                "a folder, or a list of caches that has one."
            )
        self.journal = Journal(folder)

    # Submission

    def submit(
        self, texts: Iterable[str], input_type: str, trackers: Trackers, options: Mapping[str, Any]
    ) -> JobRecord:
        """Write the texts that the cache lacks to files, reserve their budget and send them. Return the job."""
        spec = self._specs[input_type]
        opened = open_endpoint(self._embedder.provider, options["endpoint"])
        options = {
            **options,
            "leftovers": options["leftovers"] if options["keep_texts"] else "leave",
            "budgets": [[name, *budget.limit] for name, budget in self._billing(spec, trackers).named_budgets.items()],
        }
        with self._submission():
            self._remove_dead_jobs()
            job = self._new_job(spec, opened, options)
            money = self._money(job, spec, trackers)
            money.check_price()
            job = self._prepare(job, texts, spec, opened, money)
        if job.state == "open":
            self._send(job, trackers)
        return job

    @contextmanager
    def _submission(self) -> Iterator[None]:
        """Hold the lock of submissions inside the `with` block.

        Raises:
            JobError: This thread is preparing another job, whose texts come from the caller.
        """
        folder = self.journal.folder
        if getattr(_preparing, "folder", None) == folder:
            raise JobError("The iterable of texts of a submit() calls submit() itself. Call it before or after.")
        with self._locked("submit", waits=True):
            _preparing.folder = folder
            try:
                yield
            finally:
                _preparing.folder = None

    def _new_job(self, spec: InputTypeSpec, endpoint: BatchEndpoint, options: dict[str, Any]) -> JobRecord:
        embedder = self._embedder
        price = embedder.batch_price.usd_per_million
        return JobRecord(
            id=f"job-{secrets.token_hex(6)}",
            created_at=time.time(),
            model=embedder.model,
            input_type=spec.input_type,
            fingerprint=embedder.fingerprint,
            settings=embedder.job_arguments(),
            account=self.journal.account_digest(embedder.provider_account),
            endpoint=endpoint.name,
            options=options,
            price=None if price is None else str(price),
        )

    def _prepare(
        self, job: JobRecord, texts: Iterable[str], spec: InputTypeSpec, endpoint: BatchEndpoint, money: JobMoney
    ) -> JobRecord:
        """Write the files and batches of a job and reserve its budget. Until it is open, the job is not there."""
        self.journal.save_job(job)
        batches: list[BatchRecord] = []
        try:
            queue_tokens = self.journal.queue(job.account, job.model, time.time())[0]
            job = Preparation(self._embedder, spec, self.journal, endpoint, job, queue_tokens).run(texts)
            batches = self.journal.batches(job.id)
            if (refusal := money.reserve(batches)) is not None:
                raise refusal
            job = replace(job, state="open" if batches else "collected")
            self.journal.save_job(job)
        except BaseException:
            money.release(batches)
            self._remove(job.id)
            raise
        return job

    def _remove_dead_jobs(self) -> None:
        """Remove the jobs that a process has not finished preparing, and old ones that had nothing to send.

        Call it with the lock of submissions.
        """
        for job in self.journal.jobs():
            was_empty = job.unique_texts == job.cache_hits + job.elsewhere + job.left_out
            if job.state == "collected" and was_empty and job.created_at < time.time() - KEEP_EMPTY_SECONDS:
                self._remove(job.id)
            elif job.state == "preparing":
                self._money(job, self._specs[job.input_type], ()).release(self.journal.batches(job.id))
                self._remove(job.id)

    def _remove(self, job_id: str) -> None:
        files.delete(self.journal.folder, job_id)  # first: files without a job are never deleted
        self.journal.remove_job(job_id)

    def _send(self, job: JobRecord, trackers: Trackers) -> None:
        """Send the batches of a new job. What fails for a while is repeated, then left to the next step."""
        until = time.monotonic() + SUBMIT_SECONDS
        while True:
            try:
                self.advance(job.id, trackers, collects=False, polls=False)
            except EmbedKitError as error:
                if isinstance(error, JobError) and error.is_busy:  # a call that waits for its texts sends it
                    return
                if all(batch.step in UNSENT_STEPS for batch in self.journal.batches(job.id)):
                    self.cancel(job.id, trackers)  # nothing was sent that is billed
                    if all(batch.step == "COLLECTED" for batch in self.journal.batches(job.id)):
                        self._remove(job.id)
                    raise
                reason = str(error).rstrip(".")
                logger.warning("Job %s: some batches were not sent: %s. wait() and collect() go on.", job.id, reason)
                return
            waiting = [batch for batch in self.journal.batches(job.id) if batch.step in (*UNSENT_STEPS, "CREATING")]
            retries = [batch.not_before for batch in waiting if batch.not_before]
            if not retries or time.monotonic() > until:
                return
            time.sleep(max(LOCK_PAUSE, min(min(retries) - time.time(), until - time.monotonic())))

    # Steps

    def jobs(self) -> list[JobRecord]:
        """Return the jobs that this embedder can work on."""
        fingerprint = self._embedder.fingerprint
        return [job for job in self.journal.jobs() if job.fingerprint == fingerprint and job.state != "preparing"]

    def find(self, job_id: str) -> JobRecord:
        """Return a job that this embedder can work on.

        Raises:
            JobError: There is none, or it was submitted with other settings.
        """
        job = self.journal.job(job_id)
        if job is None or job.state == "preparing":
            raise JobError(f"There is no job {job_id!r} in {self.journal.folder}.", job_id)
        if job.fingerprint != self._embedder.fingerprint:
            raise JobError(
                f"Job {job_id} was submitted with other settings, for {job.model}. Use an embedder with the same "
                "arguments.",
                job_id,
            )
        return job

    def advance(self, job_id: str, trackers: Trackers, *, collects: bool, polls: bool = True) -> None:
        """Move a job forward by the steps that are possible now.

        Raises:
            JobError: The job is unknown, was submitted with other settings or another account, or another process is
                working on it.
        """

        def advance() -> None:
            with self._locked(job_id):
                self._advance(self._checked(job_id), trackers, collects=collects, polls=polls)

        run(advance)

    def _advance(self, job: JobRecord, trackers: Trackers, *, collects: bool, polls: bool) -> None:
        """Move a job forward by the steps that are possible now. Call it on a thread with the lock of the job."""
        batches = self.journal.batches(job.id)
        files.sweep(self.journal.folder, job.id, {b.nonce for b in batches if b.step != "COLLECTED"})
        if any(batch.step != "COLLECTED" for batch in batches):
            try:
                asyncio.run(self._take_steps(job, trackers, collects=collects, polls=polls))
            except OSError as error:
                reason = f"The files in {self.journal.folder} cannot be used ({type(error).__name__})."
                raise JobError(f"{reason} Is the disk full?", job.id) from error
        self._close_if_done(job)

    async def _take_steps(self, job: JobRecord, trackers: Trackers, *, collects: bool, polls: bool) -> None:
        spec, embedder = self._specs[job.input_type], self._embedder
        endpoint = open_endpoint(embedder.provider, job.options["endpoint"])
        if embedder.provider.secret is not None:
            embedder.provider.secret.refresh()
        async with endpoint:
            money = self._money(job, spec, trackers)
            runner = JobRunner(embedder, spec, self.journal, job, endpoint, money, self._embed)
            await runner.advance(collects=collects, polls=polls)

    def cancel(self, job_id: str, trackers: Trackers) -> None:
        """Cancel what has not ended. Its results so far can be collected."""

        def cancel() -> None:
            with self._locked(job_id, waits=True):
                job = self._checked(job_id)
                if job.state == "open":
                    job = replace(job, state="cancelled")
                    self.journal.save_job(job)
                self._advance(job, trackers, collects=False, polls=True)

        run(cancel)

    def close(self, job_id: str) -> None:
        """Delete the files of a job that has ended, which a process that died has left."""
        job = self.journal.job(job_id)
        if job is not None and (job.state == "open" or files.exist(self.journal.folder, job_id)):
            with self._locked(job_id, waits=True):
                self._close_if_done(job)

    def _close_if_done(self, job: JobRecord) -> None:
        if any(batch.step != "COLLECTED" for batch in self.journal.batches(job.id)):
            return
        if job.state == "open":
            self.journal.save_job(replace(job, state="collected"))
        files.delete(self.journal.folder, job.id)
        with suppress(OSError):  # Windows does not delete an open file
            self._lock_path(job.id).unlink(missing_ok=True)

    def _checked(self, job_id: str) -> JobRecord:
        """Return a job that this embedder and its API key can work on."""
        job = self.find(job_id)
        if job.account != self.journal.account_digest(self._embedder.provider_account):
            raise JobError(
                f"Job {job_id} was submitted with another API key, whose batches this key may not see. Use that key. "
                "If both keys belong to one account, pass the same account= to both embedders.",
                job_id,
            )
        return job

    # Parts

    def _billing(self, spec: InputTypeSpec, trackers: Trackers) -> CallBilling:
        embedder = self._embedder
        return CallBilling.of_call(
            *(embedder.meter, embedder.budget, embedder.batch_price, trackers),
            model=embedder.model,
            input_type=spec.input_type,
        )

    def _money(self, job: JobRecord, spec: InputTypeSpec, trackers: Trackers) -> JobMoney:
        return JobMoney(self._billing(spec, trackers), self._embedder.coordination, self.journal, job)

    def _lock_path(self, name: str) -> Path:
        return self.journal.folder / f"{name}.lock"

    @contextmanager
    def _locked(self, name: str, *, waits: bool = False) -> Iterator[None]:
        """Hold the lock of a job inside the `with` block.

        Raises:
            JobError: Another process or thread holds it, and `waits` is False.
        """
        self.journal.create()
        warns_at = time.monotonic() + WARNING_SECONDS
        with FileLock(self._lock_path(name)) as lock:
            while not lock.acquire():
                if not waits:
                    busy = JobError(f"Another process or thread is working on job {name}. Try again later.", name)
                    busy.is_busy = True
                    raise busy
                if time.monotonic() > warns_at:
                    logger.warning("%s is still locked by another process or thread", self._lock_path(name))
                    warns_at = float("inf")
                time.sleep(LOCK_PAUSE)
            yield
