"""What is left over of a batch: lines that failed go into further batches, or their texts into normal requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from embedkit_core.batches import files
from embedkit_core.batches.lines import PlannedLine, SizedText, digest_of, plan_lines
from embedkit_core.batches.prepare import BatchWriter
from embedkit_core.batches.results import Failure
from embedkit_core.cache.key import key_of
from embedkit_core.common.errors import EmbedKitError, PartialFailureError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.records import BatchRecord, JobRecord, LineRecord, LineState
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.engine.scheduler.items import max_tokens_to_send
from embedkit_core.providers.batch_endpoint import BatchEndpoint

QUEUE_IS_FULL = "queue is full"  # state of a batch in words of this library
REFUSED = "batch_refused"  # code of the lines of a batch that was refused as a whole
MAX_GENERATIONS = 3  # of batches with leftovers of leftovers; each may take the whole window
# Of a file of texts that is not the one that was written.
DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError)

logger = logging.getLogger("embedkit_core.batches")


class Leftovers:
    """Plans what becomes of the lines of a batch without vectors.

    Args:
        journal: The journal.
        endpoint: The batch endpoint.
        spec: The specification of the input type.
        job: The job.
        batch: The batch.
        resends: Whether lines may be sent again. Not if results that were paid for are lost.

    Attributes:
        requests: True if what is left over is sent in normal requests.
    """

    def __init__(
        self,
        journal: Journal,
        endpoint: BatchEndpoint,
        spec: InputTypeSpec,
        job: JobRecord,
        batch: BatchRecord,
        *,
        resends: bool,
    ) -> None:
        self._journal = journal
        self._endpoint = endpoint
        self._spec = spec
        self._job = job
        self._batch = batch
        self._file = files.lines_file(journal.folder, job.id, batch.nonce)
        self._prompt = str(spec.request_spec.body.get("prompt", ""))
        self._is_queue_refusal = batch.status == QUEUE_IS_FULL
        may_resend = job.state == "open" and not batch.error and (resends or self._is_queue_refusal)
        mode = job.options["leftovers"] if may_resend and self._file.exists() else "leave"
        is_new = batch.generation < MAX_GENERATIONS
        self._moves = may_resend and self._file.exists() and (self._is_queue_refusal or (mode == "batch" and is_new))
        self.requests = mode == "request" and not self._moves

    def plan(
        self, lines: Sequence[LineRecord], failures: Mapping[int, Failure]
    ) -> tuple[list[LineRecord], list[tuple[BatchRecord, list[LineRecord]]]]:
        """Return the lines that end with this batch, and the batches that have the texts of those that are moved.

        The files of these batches are on disk. If the file of texts is damaged, nothing is moved.
        """
        ended = [self._ended(line, failures[line.number]) for line in lines if line.state == "open"]
        if self.requests:  # a process may have died before it sent them
            ended += [line for line in lines if line.state == "left"]
        moved = {line.number: line for line in ended if line.state == "moved"}
        if not moved:
            return ended, []
        try:
            return ended, self._batches(moved, failures)
        except DAMAGES as error:
            logger.warning("Job %s: texts left over are not sent again: %s", self._job.id, _described(error))
            return [replace(line, state="left") if line.number in moved else line for line in ended], []

    def _ended(self, line: LineRecord, failure: Failure) -> LineRecord:
        if self._batch.error:
            return replace(line, state="failed", billed=0, code=REFUSED)
        pays_again = (
            failure.billed != 0 and self._batch.generation > 0
        )  # it was sent twice, and may be billed each time
        state: LineState = "moved" if self._moves and (not pays_again or self._is_queue_refusal) else "left"
        if failure.outcome == "refused":
            state = "failed"
        return replace(line, state=state, billed=0 if self._is_queue_refusal else failure.billed, code=failure.code)

    def _batches(
        self, moved: Mapping[int, LineRecord], failures: Mapping[int, Failure]
    ) -> list[tuple[BatchRecord, list[LineRecord]]]:
        queue_tokens = self._journal.queue(self._job.account, self._job.model, time.time())[0]
        writer = BatchWriter(
            *(self._journal, self._endpoint, self._spec, self._job.id, queue_tokens),
            first_number=len(self._journal.batches(self._job.id)),
            generation=self._batch.generation + (not self._is_queue_refusal),
        )
        try:
            for planned in self._planned(moved, failures):
                writer.add(planned)
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        return writer.take()

    def embed_now(self, embed: Callable[..., EmbeddingResult], ended: Sequence[LineRecord]) -> list[LineRecord]:
        """Embed what is left over with normal requests, and return the lines with their new states.

        Errors are logged. A line of which a text was not embedded is left.
        """
        left = {line.number: line for line in ended if line.state == "left"}
        if not left:
            return [*ended]
        failed: Collection[int] = ()
        numbers: list[int] = []
        try:
            texts: list[str] = []
            for line in self._whole(left):
                texts += [text.text.removeprefix(self._prompt) for text in line.texts]
                numbers += [line.number] * len(line.texts)
            described = count_noun(len(texts), "text")
            logger.info("Job %s: %s left over are sent in normal requests", self._job.id, described)
            failed = embed(texts, input_type=self._job.input_type).failed
        except (EmbedKitError, *DAMAGES) as error:
            logger.warning("Job %s: texts left over could not be embedded: %s", self._job.id, _described(error))
            failed = error.failed if isinstance(error, PartialFailureError) else range(len(numbers))
        done = set(numbers) - {numbers[position] for position in failed}
        return [replace(line, state="done") if line.number in done else line for line in ended]

    def _planned(self, lines: Mapping[int, LineRecord], failures: Mapping[int, Failure]) -> Iterator[PlannedLine]:
        """Yield lines as they were, and each text alone of lines in which one text was refused."""
        for line in self._whole(lines):
            number = line.number
            if failures[number].outcome == "split":
                yield from (PlannedLine([text]) for text in line.texts)
            else:
                yield from plan_lines(line.texts, self._spec.request_spec.limits, self._endpoint.limits)

    def _whole(self, lines: Mapping[int, LineRecord]) -> Iterator[PlannedLine]:
        """Yield the lines with their texts, from the file.

        Raises:
            DAMAGES: The file is not the one that was written.
        """
        found = 0
        for number, raw in enumerate(files.read_lines(self._file)):
            if number not in lines:
                continue
            texts = self._endpoint.texts_of(raw)
            keys = [key_of(self._spec.key_prefix, text.removeprefix(self._prompt)) for text in texts]
            if digest_of(keys) != lines[number].digest:
                raise ValueError("changed")
            found += 1
            yield PlannedLine([self._sized(key, text) for key, text in zip(keys, texts, strict=True)], number)
        if found < len(lines):
            raise ValueError("truncated")

    def _sized(self, key: bytes, text: str) -> SizedText:
        most = max_tokens_to_send(text.removeprefix(self._prompt), self._spec.request_spec)
        return SizedText(key, text, estimate_tokens(text, text.encode()), most)


def _described(error: Exception) -> str:
    """Return a description of an error without a text."""
    return str(error) if isinstance(error, EmbedKitError) else f"their file is damaged ({type(error).__name__})"
