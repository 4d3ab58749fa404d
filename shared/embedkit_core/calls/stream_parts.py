"""What a stream is made of: pieces of it, each a call of its own, and how far it has come."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterable, Sized
from contextlib import AbstractContextManager

import numpy as np

from embedkit_core.calls.call import Call, call_info
from embedkit_core.calls.plan import reason_for
from embedkit_core.common.errors import BudgetError, EmbedKitError, InputError, PartialFailureError, ProviderError
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.tracker import UsageTracker, active_trackers
from embedkit_core.engine.batching import MAX_TEXTS, MIN_TEXTS
from embedkit_core.observability.hooks import CallInfo, CallOutcome, observe_call
from embedkit_core.observability.progress import REPORT_INTERVAL, ProgressOption, make_reporter

MAX_CHUNKS = (
    4  # under way or done ahead; two keep all slots busy with full requests, two wait for a slot or for the caller
)


class StreamChunk:
    """Neighbouring texts of a stream, asked for in one call.

    When it is finished there are `rows`, float32 (n, dimensions), and perhaps an `error` that comes after them. Where
    it is that of a text that `failed`, at this place of the piece, it is the provider's.
    """

    def __init__(
        self, owner: BaseEmbedder, role: InputTypeSpec, texts: list[str], start: int, tracked: tuple[UsageTracker, ...]
    ) -> None:
        self.start = start
        self.done = threading.Event()
        self.rows: Vectors = np.empty((0, 0), dtype=np.float32)
        self.usage = Usage()
        self.error: Exception | None = None
        self.failed = False
        self._embedder = owner
        self._spec = role
        self._texts = texts
        self._left = False
        self._broken = False
        self._tracked = tracked
        self._call = Call(owner, role, texts, start=start, tracked=tracked)

    def begin(self) -> None:
        """Look up what the cache has and hand over the rest; `done` is set when all is served."""
        try:
            self._prepare()
            if self._call.needs_engine:
                self._call.submit(self.done.set)
                return
        except Exception as error:
            self._break(error)
        self.done.set()

    async def run(self) -> None:
        """Go through all steps without holding the caller's loop."""
        try:
            await self._call.off_loop(self._prepare)
            if self._call.needs_engine:
                await self._call.await_()
            await self._call.off_loop(self.finish)
        except Exception as error:
            self._break(error)
        finally:
            self.leave()

    def leave(self) -> None:
        """Withdraw what is still pending."""
        self._left = True
        self._call.leave()

    def progress(self) -> tuple[int, Usage]:
        """Give how many texts are done, and the usage so far."""
        return self._call.progress()

    @property
    def spent(self) -> Usage:
        """What it took so far, be it that nobody takes its rows any more."""
        return self.usage if self.usage.texts else self.progress()[1]

    def finish(self) -> None:
        """Take in what came of the call: the rows before the first text that failed, and that text's error."""
        if self._broken:
            return
        self._call.leave()
        self._call.log()
        try:
            result = self._call.finish()
            self.rows, self.usage = result.vectors, result.usage
        except (PartialFailureError, BudgetError) as failure:
            place = min(failure.failed)
            self._fail(failure.failed[place])
            if failure.result is not None:
                self.rows = failure.result.vectors[:place]
            self.usage = failure.usage or Usage()
        except ProviderError as error:
            self._fail(error)
            self.usage = error.usage or Usage()

    def _prepare(self) -> None:
        try:
            self._call.prepare()
        except InputError as refusal:
            self._end_before(refusal.indices[0])

    def _end_before(self, place: int) -> None:
        """Go on with the texts before one that cannot be embedded."""
        position = self.start + place
        flaw = reason_for(self._texts[place])
        self.error = InputError(f"the text at position {position} cannot be embedded: {flaw}", [position])
        self._texts = self._texts[:place]
        self._call = call = Call(self._embedder, self._spec, self._texts, start=self.start, tracked=self._tracked)
        if not self._left:  # by a cancelled caller, while this runs on a thread of ours; the old call was left then
            call.prepare()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self.failed = True

    def _break(self, error: Exception) -> None:
        self.error = error
        self._broken = True


class StreamWindow:
    """How far a stream has come, and how far it may go: `size` texts in a piece, `most` pulled and not yet given."""

    def __init__(self, owner: BaseEmbedder, role: InputTypeSpec, texts: object, progress: ProgressOption) -> None:
        self._embedder = owner
        self._spec = role
        self._reporter = make_reporter(progress, owner.model, len(texts) if isinstance(texts, Sized) else None)
        limits = role.request_spec.limits
        slots = limits.max_in_flight(owner.settings.max_concurrency)
        self.size = max(min(MAX_TEXTS, limits.texts) * -(-slots // 2), MIN_TEXTS)
        self.max_texts = self.size * MAX_CHUNKS
        self.open = True
        self._pulled = 0
        self._given = 0
        self._usage = Usage()
        self._tracked = active_trackers()  # of whoever begins the stream
        self._chunks: deque[StreamChunk] = deque()  # those whose rows were not all taken

    def fits(self, texts: int) -> bool:
        """Tell whether there is room for so many more texts."""
        return self._pulled - self._given + texts <= self.max_texts

    def next_chunk(self, texts: list[str]) -> StreamChunk:
        """Make the next piece."""
        start = self._pulled
        self._pulled += len(texts)
        piece = StreamChunk(self._embedder, self._spec, texts, start, self._tracked)
        self._chunks.append(piece)
        return piece

    def delivered(self, piece: StreamChunk) -> None:
        """Note that all rows of a piece were taken, the first of those that were cut."""
        self._chunks.popleft()
        self._given = piece.start + len(piece.rows)
        self._usage += piece.usage

    # What the user is told

    @property
    def report_interval(self) -> float | None:
        """The seconds after which a caller who waits looks up, None for no need to."""
        return None if self._reporter is None else REPORT_INTERVAL

    def report(self, pieces: Iterable[StreamChunk], *, finished: bool = False) -> None:
        """Tell the user how far it is, where they want to know and it is time; `pieces` are those under way."""
        told = self._reporter
        if told is None or not (finished or told.due()):
            return
        done, usage = self._given, self._usage
        for piece in pieces:
            more, theirs = piece.progress()
            done, usage = done + more, usage + theirs
        if finished:
            told.begin(done)
        told.report(done, usage, finished=finished)

    def close(self) -> None:
        """Tell nothing more."""
        if self._reporter is not None:
            self._reporter.close()

    def observe(self) -> AbstractContextManager[object]:
        """Watch the stream as one call, from here to its end; its texts are too many to be shown."""
        return observe_call(self._info, self._outcome)

    def _info(self) -> CallInfo:
        return call_info(self._embedder, self._spec)

    def _outcome(self) -> CallOutcome:
        return CallOutcome(sum((piece.spent for piece in self._chunks), self._usage))

    def error_after(self, piece: StreamChunk) -> Exception | None:
        """Give what is to be raised after the rows of a piece, in terms of the stream."""
        error = piece.error
        if piece.failed and isinstance(error, BudgetError):
            error.succeeded = range(self._given)
            error.failed = {self._given: copy.copy(error)}
        elif piece.failed and isinstance(error, ProviderError) and self._given:
            error = self._failure(error)
        if isinstance(error, EmbedKitError):
            error.usage = self._usage
        return error

    def _failure(self, error: ProviderError) -> PartialFailureError:
        position, owner = self._given, self._embedder
        kept = " and are in the cache: a rerun sends only the rest" if owner.tiered_cache.backend else ""
        return PartialFailureError(
            f"the text at position {position} failed: {str(error).rstrip('.')}. The rows before it were given{kept}",
            failed={position: error},
            succeeded=range(position),
            result=EmbeddingResult(
                vectors=np.empty((0, owner.dimensions or 0), dtype=np.float32),
                usage=self._usage,
                model=owner.model,
                input_type=self._spec.input_type,
                space=owner.space,
            ),
        )
