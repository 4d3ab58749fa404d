"""A stream of texts: rows in order, a bounded part of it in memory, several pieces of it under way at once."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterable, Generator, Iterable

from embedkit_core.calls.plan import iterator_over
from embedkit_core.calls.stream_parts import Piece, Reach
from embedkit_core.common.errors import EmbedKitError, InputError
from embedkit_core.common.types import Vectors
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import Role
from embedkit_core.engine.runtime.process import refuse_engine_thread
from embedkit_core.observability.progress import ProgressTo

PATIENCE = 0.1  # seconds after which a piece goes out as it is, so that a slow source holds nothing back


class Stream:
    """A stream for a caller that may block, and pulls the texts itself."""

    def __init__(self, owner: BaseEmbedder, role: Role, texts: Iterable[str], progress: ProgressTo = None) -> None:
        if isinstance(texts, AsyncIterable) and not isinstance(texts, Iterable):
            raise InputError("embed_iter() cannot wait for an async source; use aembed_iter()", ())
        self._source = iterator_over(texts)
        self._reach = Reach(owner, role, texts, progress)
        self._pieces: deque[Piece] = deque()
        self._end: Exception | None = None
        self._quick = False
        self._process = os.getpid()

    def rows(self) -> Generator[Vectors, None, None]:
        """Give float32 (dimensions,) for each text, and withdraw what is pending when it is closed."""
        reach = self._reach
        error: Exception | None = None
        with reach.watched():
            try:
                while error is None and (piece := self._next()) is not None:
                    if piece.error is not None:
                        self._leave()
                    for place in range(len(piece.rows)):
                        yield piece.rows[place].copy()
                    reach.gave(piece)
                    reach.report(self._pieces)
                    error = reach.error_after(piece)
                    del piece  # its rows, before the next piece is waited for
                if error := error or self._end:
                    raise error
                reach.report((), finished=True)
            finally:
                error = self._end = None  # an error that is raised holds this frame
                self._leave()

    def _next(self) -> Piece | None:
        self._check_place()
        self._pull_ahead()
        if not self._pieces:
            return None
        while not self._pieces[0].done.wait(self._reach.nap):
            self._reach.report(self._pieces)
        piece = self._pieces.popleft()
        piece.finish()
        return piece

    def _check_place(self) -> None:
        if os.getpid() != self._process:
            raise EmbedKitError("this stream was begun before a fork and belongs to the parent process; begin another")
        refuse_engine_thread("embed_iter")

    def _pull_ahead(self) -> None:
        """Begin pieces while there is room; finished rows are given first, unless the source takes no time."""
        reach = self._reach
        once = self._quick
        while reach.open and reach.fits(reach.size) and (once or not self._ready()):
            self._begin_piece()
            once = False

    def _ready(self) -> bool:
        return bool(self._pieces) and self._pieces[0].done.is_set()

    def _begin_piece(self) -> None:
        reach = self._reach
        if not (texts := self._pull(reach.size)):
            return
        piece = reach.cut(texts)
        self._pieces.append(piece)
        piece.begin()
        if piece.error is not None:
            reach.open = False

    def _pull(self, n: int) -> list[str]:
        """Take n texts from the source, or what it gives in a moment."""
        texts: list[str] = []
        due = time.monotonic() + PATIENCE
        try:
            for text in self._source:
                texts.append(text)
                if len(texts) == n or time.monotonic() >= due or (not self._quick and self._ready()):
                    break
            else:
                self._reach.open = False
        except Exception as error:
            self._reach.open = False
            self._end = error
        self._quick = len(texts) == n
        return texts

    def _leave(self) -> None:
        self._reach.open = False
        self._reach.close()
        while self._pieces:
            piece = self._pieces.popleft()
            if os.getpid() == self._process:
                piece.leave()
