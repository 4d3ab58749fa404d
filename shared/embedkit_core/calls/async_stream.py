"""Async stream. Separate from `stream` because it imports asyncio."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator

from embedkit_core.calls.plan import iterate_texts
from embedkit_core.calls.stream import MAX_FILL_SECONDS
from embedkit_core.calls.stream_parts import StreamChunk, StreamWindow
from embedkit_core.common.threads import running_loop
from embedkit_core.common.types import Vectors
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.observability.progress import ProgressOption

ROWS_PER_YIELD = 64  # rows between two yields to the event loop
MAX_LOOP_BLOCK_SECONDS = (
    0.005  # the longest time a plain iterator may block the event loop, unless one text takes longer
)


class AsyncStream:
    """A stream whose texts a task on the caller's event loop pulls, so that a slow source delays no finished rows.

    Raises:
        InputError: `texts` is not an iterable or async iterable of texts.
    """

    def __init__(
        self,
        embedder: BaseEmbedder,
        spec: InputTypeSpec,
        texts: Iterable[str] | AsyncIterable[str],
        progress: ProgressOption = None,
    ) -> None:
        self._source = aiter(texts) if isinstance(texts, AsyncIterable) else _YieldingIterator(iterate_texts(texts))
        self._window = StreamWindow(embedder, spec, texts, progress)
        self._chunks: deque[tuple[StreamChunk, asyncio.Task[None]]] = deque()
        self._filling: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._fill_deadline = 0.0
        self._changed = asyncio.Event()  # for `rows`: a chunk was started, or the source has ended
        self._room_changed = asyncio.Event()  # for `_pull`: rows were yielded, or the window is closed

    async def rows(self) -> AsyncGenerator[Vectors, None]:
        """Yield one vector per text, float32 (dimensions,). Closing the generator withdraws the pending texts."""
        running_loop()
        window = self._window
        error: Exception | None = None
        with window.observe():
            pull_task = asyncio.create_task(self._pull())
            pull_task.add_done_callback(lambda _: self._mark_ended())
            try:
                while error is None and (chunk := await self._next()) is not None:
                    if chunk.error is not None:
                        self._leave()
                    for index in range(len(chunk.rows)):
                        yield chunk.rows[index].copy()
                        if index % ROWS_PER_YIELD == ROWS_PER_YIELD - 1:
                            await asyncio.sleep(0)
                    window.delivered(chunk)
                    window.report(chunk for chunk, _ in self._chunks)
                    self._room_changed.set()
                    error = window.error_after(chunk)
                    del chunk  # free its rows before waiting for the next chunk
                if error is not None:
                    raise error
                await pull_task  # raise the error of the source, if any
                window.report((), finished=True)
            finally:
                error = None  # a raised error refers to this frame
                tasks = [pull_task, *self._leave()]
                pull_task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> StreamChunk | None:
        while not self._chunks:
            if not self._window.open:
                return None
            self._changed.clear()
            await self._changed.wait()
        chunk, task = self._chunks[0]
        while (
            self._window.report_interval and not (await asyncio.wait((task,), timeout=self._window.report_interval))[0]
        ):
            self._window.report(chunk for chunk, _ in self._chunks)
        await task
        self._chunks.popleft()
        return chunk

    async def _pull(self) -> None:
        window = self._window
        try:
            async for text in self._source:
                self._take(text)
                while window.open and not self._fits():
                    self._room_changed.clear()
                    await self._room_changed.wait()
                if not window.open:
                    return
        finally:  # also send the texts that came before an error or a cancellation
            self._begin_chunk()

    def _mark_ended(self) -> None:
        """Close the window when the source has ended, also if the pull task was cancelled."""
        self._window.open = False
        self._changed.set()

    def _fits(self) -> bool:
        """Return True if there is room for the next text, and for a full chunk if the text would start one."""
        filling = len(self._filling)
        return self._window.fits(filling + 1 if filling else self._window.size)

    def _take(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        self._filling.append(text)
        is_full = len(self._filling) == self._window.size
        if self._timer is None:
            if self._window.needs_text([text]) and not is_full:
                return
            delay = MAX_FILL_SECONDS if self._chunks else 0.0  # if nothing is in flight, send at once
            self._fill_deadline = loop.time() + MAX_FILL_SECONDS
            self._timer = loop.call_later(delay, self._begin_chunk)
        if is_full or loop.time() >= self._fill_deadline:
            self._begin_chunk()

    def _begin_chunk(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        texts, self._filling = self._filling, []
        if not texts or not self._window.open:
            return
        chunk = self._window.next_chunk(texts)
        previous = self._chunks[-1][1] if self._chunks else None
        self._chunks.append((chunk, asyncio.get_running_loop().create_task(self._run(chunk, previous))))
        self._changed.set()

    async def _run(self, chunk: StreamChunk, previous: asyncio.Task[None] | None) -> None:
        if previous is not None and chunk.needs_width:
            await asyncio.wait((previous,))
        await chunk.run()
        if chunk.error is not None:
            self._window.open = False
            self._room_changed.set()

    def _leave(self) -> list[asyncio.Task[None]]:
        self._window.open = False
        self._window.close()
        self._room_changed.set()
        if self._timer is not None:
            self._timer.cancel()
        tasks = []
        while self._chunks:
            chunk, task = self._chunks.popleft()
            chunk.leave()
            task.cancel()
            tasks.append(task)
        return tasks


class _YieldingIterator:
    """An async iterator over a plain iterator that regularly yields to the event loop."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._slice_start = time.monotonic()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if time.monotonic() - self._slice_start > MAX_LOOP_BLOCK_SECONDS:
            await asyncio.sleep(0)
            self._slice_start = time.monotonic()
        try:
            return next(self._texts)
        except StopIteration:
            raise StopAsyncIteration from None
