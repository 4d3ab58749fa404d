"""The steps of a job's batches: upload, create, poll, collect. The journal is written before each of them.

A step that was interrupted is taken up again by any process: an upload is repeated, and a batch that may have been
created is looked for at the provider before another one is created.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from embedkit_core.batches import files
from embedkit_core.batches.leftovers import QUEUE_IS_FULL, Leftovers
from embedkit_core.batches.money import JobMoney
from embedkit_core.batches.results import ResultReader, RowWriter
from embedkit_core.common.errors import BatchNotFoundError, BudgetError, FileNotReadyError, JobError, ProviderError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord, LineRecord
from embedkit_core.providers.batch_endpoint import BatchEndpoint, BatchOrder, RemoteBatch
from embedkit_core.providers.http.redaction import printable

SEARCH_SECONDS = 60.0  # between two searches for a batch that may have been created, before another one is created
SEARCH_GROWTH = 4  # of these seconds, with each further creation
MAX_CREATIONS = 3  # of a batch whose creation is not answered: each may be paid for
RESULTS_SECONDS = 3600.0  # that a batch may lack its results after its end
GRACE_SECONDS = 2 * 3600.0  # after a batch's window, before it is cancelled
CANCEL_SECONDS = 3600.0  # that a cancelled batch may take to end
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS, LONGEST_STATED_SECONDS = 5.0, 60.0, 3600.0
LONGEST_WINDOW = 30 * 24 * 3600.0  # that a provider may state: it keeps no results for longer
MIN_QUEUE_TOKENS = 50_000  # that any provider queues
UPLOAD_SECONDS = 24 * 3600.0  # after which an uploaded file that is not found was deleted, and is not just new
QUEUE_SECONDS = 300.0  # until a batch that the provider's full queue refused is sent again
MAX_TRIES = 12  # of sending a batch, before its error is raised
LONGEST_SHOWN_ID = 100
NOT_FOUND, LOST = "not found", "unknown to the provider"  # states of a batch in words of this library

logger = logging.getLogger("embedkit_core.batches")


class JobRunner:
    """Moves the batches of one job forward, in the thread that holds the job's lock.

    Args:
        embedder: The embedder.
        spec: The specification of the job's input type.
        journal: The journal.
        job: The job.
        endpoint: The batch endpoint, entered.
        money: The job's budgets and meters.
        embed: Embeds texts with normal requests, for leftovers.
        clock: The current time, in seconds since 1970.
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        spec: InputTypeSpec,
        journal: Journal,
        job: JobRecord,
        endpoint: BatchEndpoint,
        money: JobMoney,
        embed: Callable[..., EmbeddingResult],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._embedder = embedder
        self._spec = spec
        self._journal = journal
        self._job = job
        self._endpoint = endpoint
        self._money = money
        self._embed = embed
        self._clock = clock

    async def advance(self, *, collects: bool, polls: bool = True) -> None:
        """Move all batches forward by the steps that are possible now.

        Args:
            collects: Whether results are written to the cache.
            polls: Whether the provider is asked for the state of batches. Otherwise, batches are only sent.

        Raises:
            ProviderError: The provider refused a step for a reason that a retry cannot change. Other batches went on.
            JobError: A file of the job is missing. Other batches went on.
            BudgetError: A budget has no room for leftovers of the job.
            CacheError: The cache cannot be written.
        """
        first_error: Exception | None = None
        pending = self._journal.batches(self._job.id)
        while pending:
            batch = pending.pop(0)
            try:
                pending += await self._advance_batch(batch, collects=collects, polls=polls)
            except ProviderError as error:
                first_error = first_error or self._retry_later(batch.nonce, error)
            except (BudgetError, JobError) as error:
                first_error = first_error or error
        if first_error is not None:
            raise first_error

    async def _advance_batch(self, batch: BatchRecord, *, collects: bool, polls: bool) -> list[BatchRecord]:
        """Move one batch forward by the steps that are possible now. Return the batches that its leftovers are in."""
        is_cancelled, keeps_texts = self._job.state == "cancelled", self._job.options["keep_texts"]
        while True:
            if is_cancelled and batch.step in ("PREPARED", "UPLOADING", "UPLOADED"):
                await self._drop(batch)
                return []
            if not keeps_texts and batch.step in ("CREATED", "TERMINAL"):
                files.lines_file(self._journal.folder, batch.job, batch.nonce).unlink(missing_ok=True)
            if self._clock() < batch.not_before:
                return []
            before = batch.step
            match batch.step:
                case "PREPARED" | "UPLOADING":
                    batch = await self._upload(batch)
                case "UPLOADED":
                    batch = await self._create(batch)
                case "CREATING":
                    batch = await self._find(batch)
                case "CREATED" if polls:
                    batch = await self._poll(batch)
                case "TERMINAL" if collects:
                    return await self._collect(batch)
                case _:
                    return []
            if batch.step == before:
                break
        return []

    def _save(self, batch: BatchRecord, **changes: Any) -> BatchRecord:
        """Return a batch with changes, which are on disk. A new step begins with no tries."""
        if changes.get("step", batch.step) != batch.step:
            changes = {"tries": 0, "not_before": 0.0, "stepped_at": self._clock(), **changes}
        batch = replace(batch, **changes)
        self._journal.save_batch(batch)
        return batch

    def _retry_later(self, nonce: str, error: ProviderError) -> ProviderError | None:
        """Postpone the step of a batch that failed. Return the error if a retry cannot help."""
        batch = self._journal.batch(nonce)
        if not error.retryable or batch is None:
            return error
        if isinstance(error, FileNotReadyError) and self._clock() > batch.stepped_at + UPLOAD_SECONDS:
            self._save(batch, step="PREPARED")  # the provider has deleted the file
            return None
        if batch.tries >= MAX_TRIES and batch.step not in ("CREATED", "TERMINAL"):  # what is paid for is not given up
            return error
        pause = min(FIRST_RETRY_SECONDS * 2 ** min(batch.tries, MAX_TRIES), LONGEST_RETRY_SECONDS)
        stated = min(error.retry_after or 0.0, LONGEST_STATED_SECONDS)
        pause = max(pause * random.uniform(0.5, 1.0), stated)  # noqa: S311
        logger.warning("Job %s: %s; the next try is in %.0f s or later", self._job.id, str(error).rstrip("."), pause)
        self._save(batch, tries=batch.tries + 1, not_before=self._clock() + pause)
        return None

    # Sending

    async def _upload(self, batch: BatchRecord) -> BatchRecord:
        if not self._has_queue_room(batch):
            return batch
        if (refusal := self._money.reserve([batch])) is not None:
            raise refusal
        batch = self._save(batch, step="UPLOADING")
        file = files.lines_file(self._journal.folder, batch.job, batch.nonce)
        if not file.exists():
            raise JobError(
                f"Job {self._job.id}: the file of texts {file} is missing. Cancel the job and submit the texts again.",
                self._job.id,
            )
        file_id = await self._endpoint.upload(file, f"rag-embedkit-{batch.nonce}.jsonl")
        return self._save(batch, step="UPLOADED", file_id=file_id)

    async def _create(self, batch: BatchRecord) -> BatchRecord:
        if not self._has_queue_room(batch):
            return batch
        file_id = batch.file_id
        assert file_id is not None
        uploaded = batch
        batch = self._save(batch, step="CREATING", creations=batch.creations + 1)
        try:
            remote = await self._endpoint.create(
                BatchOrder(file_id, batch.nonce, self._spec.request_spec.body, batch.lines)
            )
        except ProviderError as error:
            if _was_not_created(error):
                self._save(uploaded)
            raise
        return self._created(batch, remote)

    async def _find(self, batch: BatchRecord) -> BatchRecord:
        """Look for a batch that may have been created. After two searches without it, it was not."""
        found = await self._endpoint.find(batch.nonce)
        if found:
            best = max(found, key=lambda remote: (bool(remote.outputs), not remote.has_ended))
            logger.info(
                "Job %s: adopted batch %s, which an interrupted step had created", self._job.id, _shown(best.id)
            )
            return self._created(replace(batch, creations=batch.creations + len(found) - 1), best)
        if batch.status != NOT_FOUND:
            pause = SEARCH_SECONDS * SEARCH_GROWTH ** (batch.creations - 1)
            return self._save(batch, status=NOT_FOUND, not_before=self._clock() + pause)
        if batch.creations >= MAX_CREATIONS and self._job.state == "open":
            raise JobError(
                f"Job {self._job.id}: {self._job.model} has not answered {batch.creations} creations of a batch, and "
                "its list has none of them. It is not asked again, because each may be paid for; a batch that is "
                "listed later is collected. Cancel the job and submit the texts again once the provider works.",
                self._job.id,
            )
        return self._save(batch, step="UPLOADED", status="")

    def _created(self, batch: BatchRecord, remote: RemoteBatch) -> BatchRecord:
        return self._save(_described(batch, remote), step="CREATED", remote_id=remote.id)

    def _has_queue_room(self, batch: BatchRecord) -> bool:
        limit, queued = self._journal.queue(self._job.account, self._job.model, self._clock())
        return limit is None or not queued or queued + batch.tokens <= limit

    # Polling

    async def _poll(self, batch: BatchRecord) -> BatchRecord:
        remote_id = batch.remote_id
        assert remote_id is not None
        now, deadline = self._clock(), self._deadline(batch)
        await self._cancel_duplicates(batch)
        try:
            remote = await self._endpoint.retrieve(remote_id)
        except BatchNotFoundError:
            if now < deadline:
                raise
            remote = RemoteBatch(remote_id, LOST, has_ended=True)
        was_ended = batch.status == remote.status and remote.has_ended
        batch = self._save(_described(batch, remote), tries=0)
        if remote.queue_is_full:
            self._learn_queue(batch, remote)
        if _lacks_results(batch) and remote.has_ended:  # they are paid for, and may appear later
            if not was_ended:
                return self._save(batch, stepped_at=now)
            if now < batch.stepped_at + RESULTS_SECONDS:
                return batch
        if remote.has_ended:
            return self._save(batch, step="TERMINAL")
        if now >= deadline + CANCEL_SECONDS:
            logger.warning("Job %s: batch %s does not end and is given up", self._job.id, _shown(batch.remote_id))
            return self._save(batch, step="TERMINAL")
        if self._job.state == "cancelled":
            await self._cancel(remote)
        elif now >= deadline:
            logger.warning(
                "Job %s: batch %s is past its window and is cancelled", self._job.id, _shown(batch.remote_id)
            )
            await self._cancel(remote)
        return batch

    def _deadline(self, batch: BatchRecord) -> float:
        """Return the time from which a batch that has not ended is cancelled."""
        return max(batch.expires_at or 0.0, batch.stepped_at + self._endpoint.limits.window) + GRACE_SECONDS

    def _learn_queue(self, batch: BatchRecord, remote: RemoteBatch) -> None:
        """Store how many tokens the provider queues, as it states it; half as many as a lone batch that it refused has.

        Other users of the account may have filled the queue, so nothing below `MIN_QUEUE_TOKENS` is concluded.
        """
        limit = remote.queue_tokens
        queued = self._journal.queue(self._job.account, self._job.model, self._clock())[1]
        if queued <= batch.tokens and (limit is None or limit >= batch.tokens):
            half = max(batch.tokens // 2, MIN_QUEUE_TOKENS)
            limit = half if half < batch.tokens else limit
        if limit:
            logger.info("Job %s: the provider queues %s tokens of %s", self._job.id, f"{limit:,}", self._job.model)
            self._journal.learn_queue(self._job.account, self._job.model, limit, self._clock())

    # Ending

    async def _drop(self, batch: BatchRecord) -> None:
        """End a batch of a cancelled job that was not created."""
        billed = None if batch.creations else 0  # a creation was not answered, and no search has found the batch
        lines = [line for line in self._journal.lines(batch.nonce) if line.state == "open"]
        ended = [replace(line, state="left", billed=billed, code="batch_cancelled") for line in lines]
        await self._delete_upload(batch)
        self._money.settle(batch, ended)
        self._journal.end_batch(replace(batch, step="COLLECTED", stepped_at=self._clock()), ended)
        if batch.creations:
            self._money.meter(batch, ended)
        self._money.release([batch])
        files.delete(self._journal.folder, batch.job, batch.nonce)

    async def _collect(self, batch: BatchRecord) -> list[BatchRecord]:
        """Write the results of a batch to the cache. Return the batches that its leftovers are in."""
        result_files, has_all = await self._download(batch)
        lines = self._journal.lines(batch.nonce)
        embedder, spec = self._embedder, self._spec
        row_width = spec.format.width if embedder.dimensions is None else spec.format.width_of(embedder.dimensions)
        reader = ResultReader(self._endpoint, spec, embedder.provider.model, row_width)
        writer = RowWriter(embedder.vector_cache, spec, lambda ended: self._mark(batch, ended))
        found = reader.read(result_files, batch.nonce, lines, writer)
        if embedder.dimensions is None and reader.row_width:
            embedder.learn_dimensions(spec.format.dimensions_of(reader.row_width))
        if found.foreign:
            logger.warning(
                "Job %s: batch %s has %s for no line of it, which were ignored",
                *(self._job.id, _shown(batch.remote_id), count_noun(found.foreign, "result")),
            )
        leftovers = Leftovers(self._journal, self._endpoint, spec, self._job, batch, resends=has_all)
        ended, successors = leftovers.plan(self._journal.lines(batch.nonce), found.failures)
        metered = ended
        if leftovers.requests:
            self._journal.end_lines(batch.nonce, [line for line in ended if line.state == "left"])  # frees their texts
            metered = [replace(line, state="moved") if line.state == "left" else line for line in ended]
            ended = leftovers.embed_now(self._embed, ended)
        await self._delete_upload(batch)
        self._money.settle(batch, ended)
        if batch.status == QUEUE_IS_FULL:
            not_before = self._clock() + QUEUE_SECONDS
            successors = [(replace(one, not_before=not_before), its_lines) for one, its_lines in successors]
        self._journal.end_batch(replace(batch, step="COLLECTED", stepped_at=self._clock()), ended, successors)
        self._money.meter(batch, metered)  # texts of normal requests are metered by their call
        files.delete(self._journal.folder, batch.job, batch.nonce)
        if batch.error:
            raise JobError(
                f"Job {self._job.id}: {self._job.model} refused batch {_shown(batch.remote_id)}: {batch.error}. Its "
                "texts were not embedded and not billed: submit them again, or use embed().",
                self._job.id,
            )
        return [one for one, _ in successors]

    async def _download(self, batch: BatchRecord) -> tuple[list[Path], bool]:
        """Return the result files of a batch, and False if the provider has deleted one."""
        result_files, has_all = [], batch.status != LOST and not _lacks_results(batch)
        for number, output in enumerate(batch.outputs):
            file = files.results_file(self._journal.folder, batch.job, batch.nonce, number)
            if not file.exists():
                part = file.with_suffix(".part")
                files.finish(files.create(part))
                try:
                    await self._endpoint.download(output, part)
                except BatchNotFoundError as error:
                    logger.warning(
                        "Job %s: results of batch %s are lost: %s", self._job.id, _shown(batch.remote_id), error
                    )
                    has_all = False
                    continue
                files.write_to_disk(part)
                part.replace(file)
            result_files.append(file)
        return result_files, has_all

    async def _cancel_duplicates(self, batch: BatchRecord) -> None:
        """Cancel further batches with the same texts, which a search did not find in time."""
        if batch.creations < 2:  # the provider was asked once
            return
        with suppress(ProviderError):
            for remote in await self._endpoint.find(batch.nonce):
                if remote.id != batch.remote_id and not remote.has_ended:
                    logger.warning("Job %s: batch %s is a duplicate and is cancelled", self._job.id, _shown(remote.id))
                    await self._cancel(remote)

    async def _cancel(self, remote: RemoteBatch) -> None:
        """Cancel a batch, unless that was done before: a second time may be refused."""
        if "cancel" not in remote.status.lower():
            await self._endpoint.cancel(remote.id)

    async def _delete_upload(self, batch: BatchRecord) -> None:
        """Delete an uploaded file; the provider deletes it later anyway."""
        if batch.file_id is not None:
            with suppress(ProviderError):
                await self._endpoint.delete_upload(batch.file_id)

    def _mark(self, batch: BatchRecord, ended: Sequence[LineRecord]) -> None:
        self._journal.end_lines(batch.nonce, ended)
        self._money.count(batch, ended)


def _shown(name: str | None) -> str:
    """Return a provider's ID as a message shows it: short, and without control characters of a terminal."""
    return printable(name or "")[:LONGEST_SHOWN_ID]


def _was_not_created(error: ProviderError) -> bool:
    """Return True if a failed `create` has certainly created no batch."""
    return error.unsent or (error.status is not None and error.status < 500 and error.status != 408)


def _lacks_results(batch: BatchRecord) -> bool:
    """Return True if the provider states completed lines, but no file that has them."""
    return batch.done > 0 and not batch.outputs


def _described(batch: BatchRecord, remote: RemoteBatch) -> BatchRecord:
    """Return a batch with what its provider states about it."""
    is_refused = bool(remote.error) and not remote.outputs and not remote.queue_is_full and not remote.done
    is_plausible = remote.expires_at is not None and 0 < remote.expires_at <= batch.stepped_at + LONGEST_WINDOW
    return replace(
        batch,
        status=QUEUE_IS_FULL if remote.queue_is_full else remote.status,
        outputs=tuple(dict.fromkeys(remote.outputs)),
        done=min(remote.done, batch.lines),
        failed=min(remote.failed, batch.lines),
        expires_at=remote.expires_at if is_plausible else batch.expires_at,
        error=remote.error if is_refused else "",
    )
