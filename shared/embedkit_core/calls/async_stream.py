"""A stream of texts for a caller on a loop; apart from `stream`, since it comes with asyncio."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator

from embedkit_core.calls.plan import iterate_texts
from embedkit_core.calls.stream import MAX_FILL_SECONDS
from embedkit_core.calls.stream_parts import StreamChunk, StreamWindow
from embedkit_core.common.types import Vectors
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.observability.progress import ProgressOption

ROWS_PER_YIELD = 64  # rows after which an async caller's loop has its turn
MAX_LOOP_BLOCK_SECONDS = (
    0.005  # seconds for which a plain iterator may hold an async caller's loop, unless one text takes longer
)


class AsyncStream:
    """A stream for a caller on a loop; a task of its own pulls the texts, so that nothing waits for a slow source."""

    def __init__(
        self,
        owner: BaseEmbedder,
        role: InputTypeSpec,
        texts: Iterable[str] | AsyncIterable[str],
        progress: ProgressOption = None,
    ) -> None:
        self._source = aiter(texts) if isinstance(texts, AsyncIterable) else _YieldingIterator(iterate_texts(texts))
        self._window = StreamWindow(owner, role, texts, progress)
        self._chunks: deque[tuple[StreamChunk, asyncio.Task[None]]] = deque()
        self._filling: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._news = asyncio.Event()  # for the caller: a piece was begun, or the source has ended
        self._room = asyncio.Event()  # for the source: rows were taken, or nothing more is wanted

    async def rows(self) -> AsyncGenerator[Vectors, None]:
        """Give float32 (dimensions,) for each text, and withdraw what is pending when it is closed."""
        reach = self._window
        error: Exception | None = None
        with reach.observe():
            pulling = asyncio.create_task(self._pull())
            pulling.add_done_callback(lambda _: self._end())
            try:
                while error is None and (piece := await self._next()) is not None:
                    if piece.error is not None:
                        self._leave()
                    for place in range(len(piece.rows)):
                        yield piece.rows[place].copy()
                        if place % ROWS_PER_YIELD == ROWS_PER_YIELD - 1:
                            await asyncio.sleep(0)
                    reach.delivered(piece)
                    reach.report(piece for piece, _ in self._chunks)
                    self._room.set()
                    error = reach.error_after(piece)
                    del piece  # its rows, before the next piece is waited for
                if error is not None:
                    raise error
                await pulling  # for what the source has raised
                reach.report((), finished=True)
            finally:
                error = None  # an error that is raised holds this frame
                tasks = [pulling, *self._leave()]
                pulling.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> StreamChunk | None:
        while not self._chunks:
            if not self._window.open:
                return None
            self._news.clear()
            await self._news.wait()
        piece, task = self._chunks[0]
        while (
            self._window.report_interval and not (await asyncio.wait((task,), timeout=self._window.report_interval))[0]
        ):
            self._window.report(piece for piece, _ in self._chunks)
        await task
        self._chunks.popleft()
        return piece

    async def _pull(self) -> None:
        reach = self._window
        try:
            async for text in self._source:
                self._take(text)
                while reach.open and not self._fits():
                    self._room.clear()
                    await self._room.wait()
                if not reach.open:
                    return
        finally:  # also what the source gave before it raised, or was cancelled on its own
            self._begin_chunk()

    def _end(self) -> None:
        """Take in that the source gives nothing more, be it that it was cancelled on its own."""
        self._window.open = False
        self._news.set()

    def _fits(self) -> bool:
        """Tell whether there is room for the next text, and, where it begins a piece, for the whole of that."""
        filling = len(self._filling)
        return self._window.fits(filling + 1 if filling else self._window.size)

    def _take(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        if not self._filling:
            patience = (
                MAX_FILL_SECONDS if self._chunks else 0.0
            )  # what finds nothing under way need not wait for company
            self._due = loop.time() + MAX_FILL_SECONDS
            self._timer = loop.call_later(patience, self._begin_chunk)
        self._filling.append(text)
        if len(self._filling) == self._window.size or loop.time() >= self._due:
            self._begin_chunk()

    def _begin_chunk(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        texts, self._filling = self._filling, []
        if not texts or not self._window.open:
            return
        piece = self._window.next_chunk(texts)
        self._chunks.append((piece, asyncio.get_running_loop().create_task(self._run(piece))))
        self._news.set()

    async def _run(self, piece: StreamChunk) -> None:
        await piece.run()
        if piece.error is not None:
            self._window.open = False
            self._room.set()

    def _leave(self) -> list[asyncio.Task[None]]:
        self._window.open = False
        self._window.close()
        self._room.set()
        if self._timer is not None:
            self._timer.cancel()
        tasks = []
        while self._chunks:
            piece, task = self._chunks.popleft()
            piece.leave()
            task.cancel()
            tasks.append(task)
        return tasks


class _YieldingIterator:
    """A plain iterator as an async one that lets the loop have its turn now and then."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._since = time.monotonic()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if time.monotonic() - self._since > MAX_LOOP_BLOCK_SECONDS:
            await asyncio.sleep(0)
            self._since = time.monotonic()
        try:
            return next(self._texts)
        except StopIteration:
            raise StopAsyncIteration from None
