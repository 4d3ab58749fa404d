"""What a stream is made of: pieces of it, each a call of its own, and how far it has come."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterable, Sized
from contextlib import AbstractContextManager

import numpy as np

from embedkit_core.calls.call import Call, call_info
from embedkit_core.calls.plan import flaw_of
from embedkit_core.common.errors import BudgetError, EmbedKitError, InputError, PartialFailureError, ProviderError
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import Role
from embedkit_core.costs.tracker import UsageTracker, trackers
from embedkit_core.engine.batching import CAP_TEXTS, FLOOR_TEXTS
from embedkit_core.observability.hooks import Facts, Outcome, watched
from embedkit_core.observability.progress import OFTEN, ProgressTo, reporter

PIECES = 4  # under way or done ahead; two keep all slots busy with full requests, two wait for a slot or for the caller


class Piece:
    """Neighbouring texts of a stream, asked for in one call.

    When it is finished there are `rows`, float32 (n, dimensions), and perhaps an `error` that comes after them. Where
    it is that of a text that `failed`, at this place of the piece, it is the provider's.
    """

    def __init__(
        self, owner: BaseEmbedder, role: Role, texts: list[str], start: int, tracked: tuple[UsageTracker, ...]
    ) -> None:
        self.start = start
        self.done = threading.Event()
        self.rows: Vectors = np.empty((0, 0), dtype=np.float32)
        self.usage = Usage()
        self.error: Exception | None = None
        self.failed = False
        self._owner = owner
        self._role = role
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

    async def serve(self) -> None:
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

    def standing(self) -> tuple[int, Usage]:
        """Give how many texts are done, and the usage so far."""
        return self._call.standing()

    @property
    def spent(self) -> Usage:
        """What it took so far, be it that nobody takes its rows any more."""
        return self.usage if self.usage.texts else self.standing()[1]

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
        flaw = flaw_of(self._texts[place])
        self.error = InputError(f"the text at position {position} cannot be embedded: {flaw}", [position])
        self._texts = self._texts[:place]
        self._call = call = Call(self._owner, self._role, self._texts, start=self.start, tracked=self._tracked)
        if not self._left:  # by a cancelled caller, while this runs on a thread of ours; the old call was left then
            call.prepare()

    def _fail(self, error: Exception) -> None:
        self.error = error
        self.failed = True

    def _break(self, error: Exception) -> None:
        self.error = error
        self._broken = True


class Reach:
    """How far a stream has come, and how far it may go: `size` texts in a piece, `most` pulled and not yet given."""

    def __init__(self, owner: BaseEmbedder, role: Role, texts: object, progress: ProgressTo) -> None:
        self._owner = owner
        self._role = role
        self._reporter = reporter(progress, owner.model, len(texts) if isinstance(texts, Sized) else None)
        limits = role.lane.limits
        slots = limits.at_once(owner.settings.max_concurrency)
        self.size = max(min(CAP_TEXTS, limits.texts) * -(-slots // 2), FLOOR_TEXTS)
        self.most = self.size * PIECES
        self.open = True
        self._pulled = 0
        self._given = 0
        self._usage = Usage()
        self._tracked = trackers()  # of whoever begins the stream
        self._cut: deque[Piece] = deque()  # those whose rows were not all taken

    def fits(self, texts: int) -> bool:
        """Tell whether there is room for so many more texts."""
        return self._pulled - self._given + texts <= self.most

    def cut(self, texts: list[str]) -> Piece:
        """Make the next piece."""
        start = self._pulled
        self._pulled += len(texts)
        piece = Piece(self._owner, self._role, texts, start, self._tracked)
        self._cut.append(piece)
        return piece

    def gave(self, piece: Piece) -> None:
        """Note that all rows of a piece were taken, the first of those that were cut."""
        self._cut.popleft()
        self._given = piece.start + len(piece.rows)
        self._usage += piece.usage

    # What the user is told

    @property
    def nap(self) -> float | None:
        """The seconds after which a caller who waits looks up, None for no need to."""
        return None if self._reporter is None else OFTEN

    def report(self, pieces: Iterable[Piece], *, finished: bool = False) -> None:
        """Tell the user how far it is, where they want to know and it is time; `pieces` are those under way."""
        told = self._reporter
        if told is None or not (finished or told.due()):
            return
        done, usage = self._given, self._usage
        for piece in pieces:
            more, theirs = piece.standing()
            done, usage = done + more, usage + theirs
        if finished:
            told.begin(done)
        told.report(done, usage, finished=finished)

    def close(self) -> None:
        """Tell nothing more."""
        if self._reporter is not None:
            self._reporter.close()

    def watched(self) -> AbstractContextManager[object]:
        """Watch the stream as one call, from here to its end; its texts are too many to be shown."""
        return watched(self._info, self._outcome)

    def _info(self) -> Facts:
        return call_info(self._owner, self._role)

    def _outcome(self) -> Outcome:
        return Outcome(sum((piece.spent for piece in self._cut), self._usage))

    def error_after(self, piece: Piece) -> Exception | None:
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
        position, owner = self._given, self._owner
        kept = " and are in the cache: a rerun sends only the rest" if owner.store.keeper else ""
        return PartialFailureError(
            f"the text at position {position} failed: {str(error).rstrip('.')}. The rows before it were given{kept}",
            failed={position: error},
            succeeded=range(position),
            result=EmbeddingResult(
                vectors=np.empty((0, owner.dimensions or 0), dtype=np.float32),
                usage=self._usage,
                model=owner.model,
                input_type=self._role.input_type,
                space=owner.space,
            ),
        )
