"""Blocking stream: rows in order, a bounded number of texts in memory, several chunks in flight."""

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

MAX_FILL_SECONDS = 0.1  # after this time a chunk is sent although it is not full


class Stream:
    """A stream whose texts are pulled on the caller's thread.

    Raises:
        InputError: `texts` is not an iterable of texts, or it is an async iterable.
    """

    def __init__(
        self, embedder: BaseEmbedder, spec: InputTypeSpec, texts: Iterable[str], progress: ProgressOption = None
    ) -> None:
        if isinstance(texts, AsyncIterable) and not isinstance(texts, Iterable):
            raise InputError(
                f"texts: embed_iter() does not accept an async iterable (got {type(texts).__name__}). "
                "Use aembed_iter().",
                (),
            )
        self._source = iterate_texts(texts)
        self._window = StreamWindow(embedder, spec, texts, progress)
        self._chunks: deque[StreamChunk] = deque()
        self._source_error: Exception | None = None
        self._source_is_fast = False
        self._process = os.getpid()

    def rows(self) -> Generator[Vectors, None, None]:
        """Yield one vector per text, float32 (dimensions,). Closing the generator withdraws the pending texts."""
        window = self._window
        error: Exception | None = None
        with window.observe():
            try:
                while error is None and (chunk := self._next()) is not None:
                    if chunk.error is not None:
                        self._leave()
                    for index in range(len(chunk.rows)):
                        yield chunk.rows[index].copy()
                    window.delivered(chunk)
                    window.report(self._chunks)
                    error = window.error_after(chunk)
                    del chunk  # free its rows before waiting for the next chunk
                if error := error or self._source_error:
                    raise error
                window.report((), finished=True)
            finally:
                error = self._source_error = None  # a raised error refers to this frame
                self._leave()

    def _next(self) -> StreamChunk | None:
        self._check_process()
        self._pull_ahead()
        if not self._chunks:
            return None
        while not self._chunks[0].done.wait(self._window.report_interval):
            self._window.report(self._chunks)
        chunk = self._chunks.popleft()
        chunk.finish()
        return chunk

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise EmbedKitError(
                "The stream was created before a fork and belongs to the parent process. Create a new stream."
            )
        refuse_engine_thread("embed_iter")

    def _pull_ahead(self) -> None:
        """Start chunks while the window has room. Finished rows are yielded first, unless the source is fast."""
        window = self._window
        pull_once = self._source_is_fast
        while window.open and window.fits(window.size) and (pull_once or not self._ready()):
            self._begin_chunk()
            pull_once = False

    def _ready(self) -> bool:
        return bool(self._chunks) and self._chunks[0].done.is_set()

    def _begin_chunk(self) -> None:
        window = self._window
        if not (texts := self._pull(window.size)):
            return
        chunk = window.next_chunk(texts)
        self._chunks.append(chunk)
        chunk.begin()
        if chunk.error is not None:
            window.open = False

    def _pull(self, n: int) -> list[str]:
        """Return up to `n` texts: fewer if the source ends, or if it is slow and rows could be yielded."""
        texts: list[str] = []
        deadline = time.monotonic() + MAX_FILL_SECONDS
        try:
            for text in self._source:
                texts.append(text)
                if len(texts) == n:
                    break
                is_due = time.monotonic() >= deadline or (not self._source_is_fast and self._ready())
                if is_due and not self._window.needs_text(texts):
                    break
            else:
                self._window.open = False
        except Exception as error:
            self._window.open = False
            self._source_error = error
        self._source_is_fast = len(texts) == n
        return texts

    def _leave(self) -> None:
        self._window.open = False
        self._window.close()
        while self._chunks:
            chunk = self._chunks.popleft()
            if os.getpid() == self._process:
                chunk.leave()
