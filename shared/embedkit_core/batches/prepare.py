"""Preparation of a job: what the cache lacks is written to files of lines. Nothing is sent."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from embedkit_core.batches import files
from embedkit_core.batches.lines import BatchRoom, PlannedLine, SizedText, custom_id, plan_lines
from embedkit_core.calls.lookup import CacheLookup, NullRows
from embedkit_core.calls.plan import Plan, plan_chunks
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord, LineRecord
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.engine.scheduler.items import max_tokens_to_send
from embedkit_core.providers.batch_endpoint import BatchEndpoint

NONCE_BYTES = 8
CHUNK_TEXTS = 5000  # in memory at once, besides their keys


class Preparation:
    """Plans the texts of a job and writes them to files. Other processes see the job when its state is "open".

    Args:
        embedder: The embedder.
        spec: The specification of the input type.
        journal: The journal.
        endpoint: The batch endpoint.
        job: The job, which is in the journal.
        queue_tokens: The most tokens that the provider queues. None if unknown.
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        spec: InputTypeSpec,
        journal: Journal,
        endpoint: BatchEndpoint,
        job: JobRecord,
        queue_tokens: int | None,
    ) -> None:
        self._embedder = embedder
        self._spec = spec
        self._journal = journal
        self._job = job
        self._seen: set[bytes] = set()
        self._prompt = str(spec.request_spec.body.get("prompt", ""))
        self._prompt_tokens = estimate_tokens(self._prompt, self._prompt.encode()) if self._prompt else 0
        self._writer = BatchWriter(journal, endpoint, spec, job.id, queue_tokens)

    def run(self, texts: Iterable[str]) -> JobRecord:
        """Write the files and their batches, and return the job with its numbers.

        Raises:
            InputError: Some texts cannot be embedded.
        """
        try:
            limits = self._spec.request_spec.limits
            for line in plan_lines(self._texts(texts), limits, self._writer.limits):
                self._writer.add(line)
                self._store_batches()
            self._writer.close()
            self._store_batches()
        except BaseException:
            self._writer.abandon()
            raise
        return replace(self._job, state="open")

    def _store_batches(self) -> None:
        for batch, lines in self._writer.take():
            self._journal.add_batch(batch, lines)

    def _texts(self, texts: Iterable[str]) -> Iterator[SizedText]:
        """Yield the texts that are to be sent, each once."""
        spec = self._spec
        for plan in plan_chunks(texts, spec.key_prefix, CHUNK_TEXTS, allows_empty=spec.allows_empty):
            lookup = CacheLookup(self._embedder, spec, plan, NullRows())
            # Before the cache is read: a job releases its texts after it has written them to the cache.
            held = self._journal.claimed(plan.keys)
            lookup.peek()
            is_new = [key not in self._seen for key in plan.keys]
            misses = [index for index in lookup.misses if is_new[index]]
            claimed = [index for index in misses if index in held]
            self._seen.update(plan.keys)
            sent = [index for index in misses if index not in held]
            sized = [text for index in sent if (text := self._sized(plan, index)) is not None]
            self._job = replace(
                self._job,
                texts=self._job.texts + plan.n,
                unique_texts=self._job.unique_texts + sum(is_new),
                cache_hits=self._job.cache_hits + sum(is_new) - len(misses),
                elsewhere=self._job.elsewhere + len(claimed),
                left_out=self._job.left_out + len(sent) - len(sized),
            )
            yield from sized

    def _sized(self, plan: Plan, index: int) -> SizedText | None:
        """Return a text with its sizes. None if it may be too long: a normal request shortens it by the usual rule."""
        request_spec, text = self._spec.request_spec, plan.texts[index]
        size, prompted = plan.sizes[index] + self._prompt_tokens, self._prompt + text
        limit = request_spec.limits.text_tokens or self._embedder.provider.max_text_tokens
        if limit and size > limit // 2:
            size = self._embedder.provider.count_tokens(prompted) or size
            if size > limit:
                return None
        return SizedText(plan.keys[index], prompted, size, max_tokens_to_send(text, request_spec))


class BatchWriter:
    """Writes lines to the files of batches, each within the limits of a batch.

    Attributes:
        limits: Limits of a batch.
    """

    def __init__(
        self,
        journal: Journal,
        endpoint: BatchEndpoint,
        spec: InputTypeSpec,
        job_id: str,
        queue_tokens: int | None,
        *,
        first_number: int = 0,
        generation: int = 0,
    ) -> None:
        self.limits = endpoint.limits
        self._finished: list[tuple[BatchRecord, list[LineRecord]]] = []
        self._journal = journal
        self._endpoint = endpoint
        self._body = spec.request_spec.body
        self._job_id = job_id
        self._queue_tokens = queue_tokens
        self._number = first_number
        self._generation = generation
        self._file: BinaryIO | None = None
        self._nonces: list[str] = []
        self._open_batch()

    def add(self, line: PlannedLine) -> None:
        """Write a line, to the next batch if the current one has no room."""
        record, encoded = self._encoded(line)
        if not self._room.takes(line, encoded):
            self.close()
            self._open_batch()
            record, encoded = self._encoded(line)
        if self._file is None:
            self._nonces.append(self._nonce)
            self._file = files.create(files.lines_file(self._journal.folder, self._job_id, self._nonce))
        self._file.write(encoded + b"\n")
        self._room.add(line, encoded)
        self._lines.append(record)

    def close(self) -> None:
        """Finish the current batch, if it has a line."""
        if self._file is None:
            return
        files.finish(self._file)
        self._file = None
        batch = BatchRecord(
            nonce=self._nonce,
            job=self._job_id,
            number=self._number,
            generation=self._generation,
            lines=self._room.lines,
            texts=self._room.texts,
            tokens=self._room.tokens,
            max_tokens=sum(line.max_tokens for line in self._lines),
            stepped_at=time.time(),
        )
        self._number += 1
        self._finished.append((batch, self._lines))

    def take(self) -> list[tuple[BatchRecord, list[LineRecord]]]:
        """Return the batches that were finished since the last call, with their lines. Their files are on disk."""
        finished, self._finished = self._finished, []
        return finished

    def abandon(self) -> None:
        """Delete all files, after an error."""
        if self._file is not None:
            self._file.close()
        for nonce in self._nonces:
            files.delete(self._journal.folder, self._job_id, nonce)

    def _open_batch(self) -> None:
        self._nonce = secrets.token_hex(NONCE_BYTES)
        self._room = BatchRoom(self.limits, self._queue_tokens)
        self._lines: list[LineRecord] = []

    def _encoded(self, line: PlannedLine) -> tuple[LineRecord, bytes]:
        record = line.record(self._room.lines)
        texts = [text.text for text in line.texts]
        return record, self._endpoint.line(custom_id(self._nonce, record), self._body, texts)
