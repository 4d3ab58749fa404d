"""Results of a batch: read from files, checked as replies of normal requests are, and written to the cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from embedkit_core.batches import files
from embedkit_core.batches.lines import line_of
from embedkit_core.cache.access import exclusive_writes
from embedkit_core.cache.embedder_cache import EmbedderCache
from embedkit_core.common.errors import BadReplyError, CacheError
from embedkit_core.common.types import Entry, Reply
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.coordination.journal.records import LineRecord
from embedkit_core.engine.scheduler.replies import post_process, validate
from embedkit_core.providers.batch_endpoint import BatchEndpoint, LineResult
from embedkit_core.providers.catalogue import find as find_model

ROWS_PER_WRITE = 512
ROWS_PER_MARK = 4096  # that the journal marks at once: what is not marked yet is written again, not paid again
LINES_FOR_WIDTH = 1000  # that are read to learn the width of an unknown model
TEXT_STATUSES = (400, 413, 422)  # of lines in which the provider refused a text
OTHER_MODEL, BAD_REPLY, REPEATED, MISSING = "other_model", "bad_reply", "repeated", "missing"

# again: send the line again as it is. split: send each of its texts alone. refused: its only text was refused.
Outcome: TypeAlias = Literal["again", "split", "refused"]


class Failure(NamedTuple):
    """A line without vectors: what to do with it, a code, and its billed tokens. None if these are unknown."""

    outcome: Outcome
    code: str
    billed: int | None = 0


@dataclass(slots=True)
class Collection:
    """What is left after the results of a batch were read.

    Attributes:
        failures: The lines without vectors, by number.
        foreign: The number of results that are for no line of the batch.
    """

    failures: dict[int, Failure] = field(default_factory=dict)
    foreign: int = 0


class RowWriter:
    """Writes the vectors of lines to a cache, and marks the lines once they are there.

    Args:
        cache: The cache.
        spec: The specification of the input type.
        mark: Stores lines that are in the cache.
    """

    def __init__(self, cache: EmbedderCache, spec: InputTypeSpec, mark: Callable[[Sequence[LineRecord]], None]) -> None:
        self._cache = cache
        self._space = spec.request_spec.space
        self._mark = mark
        self._entries: list[tuple[bytes, Entry]] = []
        self._unwritten: list[LineRecord] = []
        self._unmarked: list[LineRecord] = []
        self._unmarked_rows = 0

    def add(self, line: LineRecord, reply: Reply) -> None:
        """Add the vectors of a line; they may be written later.

        Raises:
            CacheError: The cache cannot be written. What was written before is marked.
        """
        rows = reply.vectors
        space = None if self._space is None else self._space.name_of_row(rows.shape[1])
        self._entries += [(key, Entry(row, False, space)) for key, row in zip(line.keys, rows, strict=True)]
        self._unwritten.append(replace(line, state="done", billed=_believable(reply.tokens, line)))
        if len(self._entries) >= ROWS_PER_WRITE:
            self._write()

    def flush(self) -> None:
        """Write and mark what is left. Raises CacheError as `add` does."""
        self._write()
        self._mark_written()

    def _write(self) -> None:
        backend = self._cache.backend
        assert backend is not None
        failures, flaw = self._failures(), None
        try:
            with exclusive_writes(backend):
                backend.set_many(self._entries)
        except Exception as error:  # the message of a custom cache may contain anything
            flaw = type(error).__name__
        if flaw is None and self._failures() > failures:
            flaw = "the log has the reason"
        if flaw is not None:
            self._mark_written()
            raise CacheError(
                f"The vectors of a batch could not be written to the cache ({flaw}). They stay with the provider: make "
                "the cache writable and collect the job again."
            )
        self._unmarked_rows += len(self._entries)
        self._unmarked += self._unwritten
        self._entries, self._unwritten = [], []
        if self._unmarked_rows >= ROWS_PER_MARK:
            self._mark_written()

    def _mark_written(self) -> None:
        if self._unmarked:
            self._cache.sync()  # what was paid for must survive a power cut before its results are deleted
            self._mark(self._unmarked)
        self._unmarked, self._unmarked_rows = [], 0

    def _failures(self) -> int:
        return sum(tier.write_failures for tier in self._cache.tiers)


def _believable(tokens: int | None, line: LineRecord) -> int | None:
    """Return the billed tokens of a result, None if it states none, or more than its texts can have."""
    return tokens if type(tokens) is int and 0 < tokens <= line.max_tokens else None


@dataclass(slots=True)
class _Repeated:
    """The first result of a line that has several, and whether the others differ from it."""

    reply: Reply
    differ: bool = False


class ResultReader:
    """Reads the result files of one batch.

    A result counts only if its ID is known, its status is 200, and its model, the number, order, width and dtype of its
    vectors are right. Several results of one line count only if their vectors are equal.

    Args:
        endpoint: The batch endpoint.
        spec: The specification of the input type.
        model: The name of the model.
        row_width: The number of values of a cached vector. None if it is unknown.
    """

    def __init__(self, endpoint: BatchEndpoint, spec: InputTypeSpec, model: str, row_width: int | None) -> None:
        self._endpoint = endpoint
        self._spec = spec.request_spec
        self._model = model
        self._width = spec.request_spec.width
        self.row_width = row_width

    def read(
        self, result_files: Sequence[Path], nonce: str, lines: Sequence[LineRecord], writer: RowWriter
    ) -> Collection:
        """Read result files, write the vectors that are right, and return what is left.

        Args:
            result_files: The files.
            nonce: The batch.
            lines: The lines of the batch; those that have ended are left out.
            writer: Writes the vectors.

        Raises:
            CacheError: The cache cannot be written.
        """
        found = Collection()
        all_lines = {line.number: line for line in lines}
        open_lines = {line.number: line for line in lines if line.state == "open"}
        if self._width is None and self.row_width is None:
            self._width = self._most_common_width(result_files, nonce, open_lines)
        occurrences = _count_ids(result_files, nonce)
        repeated: dict[int, _Repeated] = {}
        done: set[int] = set()
        for result in self._results(result_files, found):
            line = line_of(result, nonce, all_lines)
            if line is None:
                found.foreign += 1
            if line is None or line.state != "open":
                continue
            checked = self._check(result, line)
            if isinstance(checked, Failure):
                if line.number not in done:
                    found.failures[line.number] = checked
            elif occurrences.get(line.number, 1) > 1:
                first = repeated.setdefault(line.number, _Repeated(checked))
                first.differ |= not np.array_equal(first.reply.vectors, checked.vectors)
            elif line.number not in done:
                done.add(line.number)
                writer.add(line, checked)
        for number, results in repeated.items():
            found.failures[number] = Failure("again", REPEATED, None)
            if not results.differ:
                done.add(number)
                writer.add(open_lines[number], results.reply)
        writer.flush()
        for number in open_lines:
            if number in done:
                found.failures.pop(number, None)
            else:
                found.failures.setdefault(number, Failure("again", MISSING, None))
        return found

    def _most_common_width(
        self, result_files: Sequence[Path], nonce: str, lines: Mapping[int, LineRecord]
    ) -> int | None:
        """Return the width that most vectors have, of a model that is not in the catalogue."""
        widths: Counter[int] = Counter()
        for result in islice(self._results(result_files, Collection()), LINES_FOR_WIDTH):
            line = line_of(result, nonce, lines)
            if line is not None and result.status == 200:
                with suppress(BadReplyError):
                    widths[self._endpoint.decode(result, len(line.keys)).vectors.shape[1]] += len(line.keys)
        return widths.most_common(1)[0][0] if widths else None

    def _results(self, result_files: Sequence[Path], found: Collection) -> Iterator[LineResult]:
        for file in result_files:
            for raw in files.read_lines(file):
                try:
                    yield self._endpoint.parse(raw)
                except ValueError:
                    found.foreign += 1

    def _check(self, result: LineResult, line: LineRecord) -> Reply | Failure:
        """Return the vectors of a result as they are cached, or its failure."""
        if result.status != 200:
            if result.is_transient or result.status not in TEXT_STATUSES:
                return Failure("again", result.code or str(result.status))
            return Failure("split" if len(line.keys) > 1 else "refused", result.code or str(result.status))
        if self._is_other_model(result.model):
            return Failure("again", OTHER_MODEL, None)
        try:
            reply = self._endpoint.decode(result, len(line.keys))
            validate(reply, len(line.keys), self._width, self._spec)
            width = reply.vectors.shape[1]
            reply = post_process(reply, self._spec)
        except BadReplyError as error:
            return Failure("again", BAD_REPLY, _believable(error.tokens, line))
        if self.row_width not in (None, reply.vectors.shape[1]):
            return Failure("again", BAD_REPLY, _believable(reply.tokens, line))
        if self._width is None:
            self._width = width
        self.row_width = reply.vectors.shape[1]
        return reply

    def _is_other_model(self, name: str | None) -> bool:
        """Return True if a result names another model of the catalogue; a gateway may have names of its own."""
        if name is None or _stem(name) == _stem(self._model):
            return False
        return find_model(name) is not None


def _stem(model: str) -> str:
    """Return the name of a model without its owner."""
    return model.lower().rpartition("/")[2]


def _count_ids(result_files: Sequence[Path], nonce: str) -> dict[int, int]:
    """Return how many results each line of a batch has, without parsing them."""
    prefix = f"{nonce}-".encode()
    counts: dict[int, int] = {}
    for file in result_files:
        for raw in files.read_lines(file):
            start = raw.find(prefix)
            if start >= 0:
                number = raw[start + len(prefix) : start + len(prefix) + 10].partition(b"-")[0]
                if number.isdigit():
                    counts[int(number)] = counts.get(int(number), 0) + 1
    return counts
