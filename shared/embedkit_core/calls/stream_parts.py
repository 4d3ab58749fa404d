"""The parts of a stream: chunks, each of which is one call, and the window that bounds them."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Sequence, Sized
from contextlib import AbstractContextManager

import numpy as np

from embedkit_core.calls.call import Call
from embedkit_core.calls.call_info import call_info, response_model
from embedkit_core.calls.plan import fixes_for, is_empty, reason_for
from embedkit_core.calls.waiting import await_
from embedkit_core.common.errors import BudgetError, EmbedKitError, InputError, PartialFailureError, ProviderError
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.threads import BULK, WakeFlag, off_loop
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.tracker import UsageTracker, active_trackers
from embedkit_core.engine.batching import MAX_TEXTS, MIN_TEXTS
from embedkit_core.observability.hooks import CallInfo, CallOutcome, observe_call
from embedkit_core.observability.progress import REPORT_INTERVAL, ProgressOption, make_reporter

# Chunks in flight or finished ahead. Two keep all slots busy with full requests, two wait for a slot or the caller.
MAX_CHUNKS = 4
MAX_NAMED = 11  # positions of truncated texts in a warning, which shows ten


class StreamChunk:
    """Neighboring texts of a stream, embedded in one call.

    Attributes:
        start: The position of the first text in the stream.
        done: Set when the engine has finished the chunk (blocking streams only).
        rows: The vectors before the first failure, float32 (n, dimensions).
        truncated: The positions in the chunk of truncated texts.
        usage: The usage of the finished chunk.
        error: The error to raise after `rows`, if any.
        failed: Whether `error` is the provider's or a budget's error for the text after `rows`.
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        spec: InputTypeSpec,
        texts: list[str],
        start: int,
        tracked: tuple[UsageTracker, ...],
    ) -> None:
        self.start = start
        self.done = WakeFlag()
        self.rows: Vectors = np.empty((0, 0), dtype=np.float32)
        self.truncated: tuple[int, ...] = ()
        self.usage = Usage()
        self.error: Exception | None = None
        self.failed = False
        self._embedder = embedder
        self._spec = spec
        self._texts = texts
        self._left = False
        self._aborted = False
        self._tracked = tracked
        self._call = Call(embedder, spec, texts, warns=False, tracked=tracked)

    def begin(self) -> None:
        """Read the cache and submit the misses; `done` is set when all of them are finished."""
        try:
            self._prepare()
            if self._call.needs_engine:
                self._call.submit(self.done.set)
                return
        except Exception as error:
            self._abort(error)
        self.done.set()

    async def run(self) -> None:
        """Run all steps without blocking the caller's event loop."""
        try:
            if not await off_loop(self._prepare_and_finish, self._embedder.bulk_pool(self._spec.input_type)):
                await await_(self._call)
                await off_loop(self.finish, BULK)
        except Exception as error:
            self._abort(error)
        finally:
            self.leave()

    def leave(self) -> None:
        """Withdraw the texts that are still pending."""
        self._left = True
        self._call.leave()

    def progress(self) -> tuple[int, Usage]:
        """Return the number of finished texts and the usage so far."""
        return self._call.progress()

    @property
    def spent(self) -> Usage:
        """The usage so far, also if the stream was left."""
        return self.usage if self.usage.texts else self.progress()[1]

    def finish(self) -> None:
        """Set `rows`, `usage` and `error` from the finished call."""
        if self._aborted:
            return
        self._call.leave()
        self._call.log()
        try:
            result = self._call.finish()
            self.rows, self.usage, self.truncated = result.vectors, result.usage, result.truncated
        except (PartialFailureError, BudgetError) as failure:
            index = min(failure.failed)
            self._fail(failure.failed[index])
            if failure.result is not None:
                self.rows = failure.result.vectors[:index]
                self.truncated = tuple(position for position in failure.result.truncated if position < index)
            self.usage = failure.usage or Usage()
        except ProviderError as error:
            self._fail(error)
            self.usage = error.usage or Usage()
        except InputError as error:  # all texts are empty, and no text before them has told the width
            self.error = InputError(str(error), [self.start])

    @property
    def response_model(self) -> str | None:
        """The name of the model, as far as replies state it."""
        return response_model(self._call.ticket)

    @property
    def needs_width(self) -> bool:
        """Return True if only an earlier chunk can tell the width of the rows: all texts are empty."""
        return self._spec.allows_empty and self._embedder.dimensions is None and all(map(is_empty, self._texts))

    def _prepare_and_finish(self) -> bool:
        """Finish the chunk if no text must be sent. Return False otherwise."""
        self._prepare()
        if self._call.needs_engine or self._left:
            return False
        self.finish()
        return True

    def _prepare(self) -> None:
        try:
            self._call.prepare()
        except InputError as error:
            self._truncate_before(error.indices[0])

    def _truncate_before(self, index: int) -> None:
        """Continue with the texts before one that cannot be embedded."""
        position = self.start + index
        reason = reason_for(self._texts[index])
        fix = fixes_for([reason])
        self.error = InputError(f"The text at position {position} cannot be embedded: {reason}{fix}", [position])
        self._texts = self._texts[:index]
        self._call = call = Call(self._embedder, self._spec, self._texts, warns=False, tracked=self._tracked)
        if not self._left:  # a cancelled caller may have left while this runs on a worker thread
            call.prepare()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self.failed = True

    def _abort(self, error: Exception) -> None:
        self.error = error
        self._aborted = True


class StreamWindow:
    """The progress of a stream, and the bound on the texts in memory.

    Attributes:
        size: The number of texts in a full chunk.
        max_texts: The most texts that were pulled and whose rows were not yielded yet.
        open: Whether more texts may be pulled.
    """

    def __init__(self, embedder: BaseEmbedder, spec: InputTypeSpec, texts: object, progress: ProgressOption) -> None:
        self._embedder = embedder
        self._spec = spec
        self._reporter = make_reporter(progress, embedder.model, len(texts) if isinstance(texts, Sized) else None)
        limits = spec.request_spec.limits
        slots = limits.max_in_flight(embedder.settings.max_concurrency)
        self.size = max(min(MAX_TEXTS, limits.texts) * -(-slots // 2), MIN_TEXTS)
        self.max_texts = self.size * MAX_CHUNKS
        self.open = True
        self._pulled = 0
        self._yielded = 0
        self._truncated = 0
        self._first_truncated: list[int] = []
        self._usage = Usage()
        self._response_model: str | None = None
        self._tracked = active_trackers()  # those active where the stream is created
        self._chunks: deque[StreamChunk] = deque()  # those whose rows were not all yielded

    def fits(self, texts: int) -> bool:
        """Return True if there is room for this many more texts."""
        return self._pulled - self._yielded + texts <= self.max_texts

    def needs_text(self, texts: Sequence[str]) -> bool:
        """Return True if these are the first texts, all empty, and the next text may tell the width of their rows."""
        is_unknown = self._spec.allows_empty and not self._pulled and self._embedder.dimensions is None
        return is_unknown and all(map(is_empty, texts))

    def next_chunk(self, texts: list[str]) -> StreamChunk:
        """Return the next chunk."""
        start = self._pulled
        self._pulled += len(texts)
        chunk = StreamChunk(self._embedder, self._spec, texts, start, self._tracked)
        self._chunks.append(chunk)
        return chunk

    def delivered(self, chunk: StreamChunk) -> None:
        """Count the rows of the oldest chunk as yielded."""
        self._chunks.popleft()
        self._yielded = chunk.start + len(chunk.rows)
        self._truncated += len(chunk.truncated)
        named = MAX_NAMED - len(self._first_truncated)
        self._first_truncated += [chunk.start + position for position in chunk.truncated[:named]]
        self._usage += chunk.usage
        self._response_model = chunk.response_model or self._response_model

    # Progress and observers

    @property
    def report_interval(self) -> float | None:
        """The seconds between progress reports while the caller waits, None if no progress was requested."""
        return None if self._reporter is None else REPORT_INTERVAL

    def report(self, chunks: Iterable[StreamChunk], *, finished: bool = False) -> None:
        """Report progress if it was requested and is due. `chunks` are those whose rows were not yielded yet."""
        reporter = self._reporter
        if reporter is None or not (finished or reporter.due()):
            return
        done, usage = self._yielded, self._usage
        for chunk in chunks:
            more, chunk_usage = chunk.progress()
            done, usage = done + more, usage + chunk_usage
        if finished:
            reporter.begin(done)
        reporter.report(done, usage, finished=finished)

    def close(self) -> None:
        """Stop reporting progress, and warn of the truncated texts of the whole stream."""
        if self._truncated:
            self._embedder.warn_of_truncation(self._first_truncated, self._yielded, count=self._truncated)
        if self._reporter is not None:
            self._reporter.close()

    def observe(self) -> AbstractContextManager[object]:
        """Return a context manager that observes the stream as one call, without its texts."""
        return observe_call(self._info, self._outcome)

    def _info(self) -> CallInfo:
        return call_info(self._embedder, self._spec)

    def _outcome(self) -> CallOutcome:
        usage = sum((chunk.spent for chunk in self._chunks), self._usage)
        models = (chunk.response_model for chunk in self._chunks)
        return CallOutcome(usage, response_model=self._response_model or next(filter(None, models), None))

    def error_after(self, chunk: StreamChunk) -> Exception | None:
        """Return the error to raise after the rows of a chunk, with positions in the stream."""
        error = chunk.error
        if chunk.failed and isinstance(error, BudgetError):
            error.succeeded = range(self._yielded)
            error.failed = {self._yielded: copy.copy(error)}
        elif chunk.failed and isinstance(error, ProviderError) and self._yielded:
            error = self._failure(error)
        if isinstance(error, EmbedKitError):
            error.usage = self._usage
        return error

    def _failure(self, error: ProviderError) -> PartialFailureError:
        position, embedder = self._yielded, self._embedder
        rerun = " and are in the cache; a rerun sends only the rest." if embedder.vector_cache.backend else "."
        return PartialFailureError(
            f"The text at position {position} failed: {str(error).rstrip('.')}. The rows before it were yielded{rerun}",
            failed={position: error},
            succeeded=range(position),
            result=EmbeddingResult(
                vectors=np.empty((0, embedder.dimensions or 0), dtype=np.float32),
                usage=self._usage,
                model=embedder.model,
                input_type=self._spec.input_type,
                space=embedder.space,
            ),
        )
