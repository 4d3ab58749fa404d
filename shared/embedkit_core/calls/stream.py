"""A stream of texts: rows in order, a bounded part of it in memory, several pieces of it under way at once."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterable, Generator, Iterable

from embedkit_core.calls.plan import iterate_texts
from embedkit_core.calls.stream_parts import StreamChunk, StreamWindow
from embedkit_core.common.errors import EmbedKitError, InputError
from embedkit_core.common.types import Vectors
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.engine.runtime.process import refuse_engine_thread
from embedkit_core.observability.progress import ProgressOption

MAX_FILL_SECONDS = 0.1  # seconds after which a piece goes out as it is, so that a slow source holds nothing back


class Stream:
    """A stream for a caller that may block, and pulls the texts itself."""

    def __init__(
        self, owner: BaseEmbedder, role: InputTypeSpec, texts: Iterable[str], progress: ProgressOption = None
    ) -> None:
        if isinstance(texts, AsyncIterable) and not isinstance(texts, Iterable):
            raise InputError("embed_iter() cannot wait for an async source; use aembed_iter()", ())
        self._source = iterate_texts(texts)
        self._window = StreamWindow(owner, role, texts, progress)
        self._chunks: deque[StreamChunk] = deque()
        self._end: Exception | None = None
        self._quick = False
        self._process = os.getpid()

    def rows(self) -> Generator[Vectors, None, None]:
        """Give float32 (dimensions,) for each text, and withdraw what is pending when it is closed."""
        reach = self._window
        error: Exception | None = None
        with reach.observe():
            try:
                while error is None and (piece := self._next()) is not None:
                    if piece.error is not None:
                        self._leave()
                    for place in range(len(piece.rows)):
                        yield piece.rows[place].copy()
                    reach.delivered(piece)
                    reach.report(self._chunks)
                    error = reach.error_after(piece)
                    del piece  # its rows, before the next piece is waited for
                if error := error or self._end:
                    raise error
                reach.report((), finished=True)
            finally:
                error = self._end = None  # an error that is raised holds this frame
                self._leave()

    def _next(self) -> StreamChunk | None:
        self._check_place()
        self._pull_ahead()
        if not self._chunks:
            return None
        while not self._chunks[0].done.wait(self._window.report_interval):
            self._window.report(self._chunks)
        piece = self._chunks.popleft()
        piece.finish()
        return piece

    def _check_place(self) -> None:
        if os.getpid() != self._process:
            raise EmbedKitError("this stream was begun before a fork and belongs to the parent process; begin another")
        refuse_engine_thread("embed_iter")

    def _pull_ahead(self) -> None:
        """Begin pieces while there is room; finished rows are given first, unless the source takes no time."""
        reach = self._window
        once = self._quick
        while reach.open and reach.fits(reach.size) and (once or not self._ready()):
            self._begin_chunk()
            once = False

    def _ready(self) -> bool:
        return bool(self._chunks) and self._chunks[0].done.is_set()

    def _begin_chunk(self) -> None:
        reach = self._window
        if not (texts := self._pull(reach.size)):
            return
        piece = reach.next_chunk(texts)
        self._chunks.append(piece)
        piece.begin()
        if piece.error is not None:
            reach.open = False

    def _pull(self, n: int) -> list[str]:
        """Take n texts from the source, or what it gives in a moment."""
        texts: list[str] = []
        due = time.monotonic() + MAX_FILL_SECONDS
        try:
            for text in self._source:
                texts.append(text)
                if len(texts) == n or time.monotonic() >= due or (not self._quick and self._ready()):
                    break
            else:
                self._window.open = False
        except Exception as error:
            self._window.open = False
            self._end = error
        self._quick = len(texts) == n
        return texts

    def _leave(self) -> None:
        self._window.open = False
        self._window.close()
        while self._chunks:
            piece = self._chunks.popleft()
            if os.getpid() == self._process:
                piece.leave()
