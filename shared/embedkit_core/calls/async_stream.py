"""A stream of texts for a caller on a loop; apart from `stream`, since it comes with asyncio."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator

from embedkit_core.calls.plan import iterator_over
from embedkit_core.calls.stream import PATIENCE
from embedkit_core.calls.stream_parts import Piece, Reach
from embedkit_core.common.types import Vectors
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import Role
from embedkit_core.observability.progress import ProgressTo

TURN = 64  # rows after which an async caller's loop has its turn
BREATH = 0.005  # seconds for which a plain iterator may hold an async caller's loop, unless one text takes longer


class AsyncStream:
    """A stream for a caller on a loop; a task of its own pulls the texts, so that nothing waits for a slow source."""

    def __init__(
        self, owner: BaseEmbedder, role: Role, texts: Iterable[str] | AsyncIterable[str], progress: ProgressTo = None
    ) -> None:
        self._source = aiter(texts) if isinstance(texts, AsyncIterable) else _InTurns(iterator_over(texts))
        self._reach = Reach(owner, role, texts, progress)
        self._pieces: deque[tuple[Piece, asyncio.Task[None]]] = deque()
        self._filling: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._news = asyncio.Event()  # for the caller: a piece was begun, or the source has ended
        self._room = asyncio.Event()  # for the source: rows were taken, or nothing more is wanted

    async def rows(self) -> AsyncGenerator[Vectors, None]:
        """Give float32 (dimensions,) for each text, and withdraw what is pending when it is closed."""
        reach = self._reach
        error: Exception | None = None
        with reach.watched():
            pulling = asyncio.create_task(self._pull())
            pulling.add_done_callback(lambda _: self._end())
            try:
                while error is None and (piece := await self._next()) is not None:
                    if piece.error is not None:
                        self._leave()
                    for place in range(len(piece.rows)):
                        yield piece.rows[place].copy()
                        if place % TURN == TURN - 1:
                            await asyncio.sleep(0)
                    reach.gave(piece)
                    reach.report(piece for piece, _ in self._pieces)
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

    async def _next(self) -> Piece | None:
        while not self._pieces:
            if not self._reach.open:
                return None
            self._news.clear()
            await self._news.wait()
        piece, task = self._pieces[0]
        while self._reach.nap and not (await asyncio.wait((task,), timeout=self._reach.nap))[0]:
            self._reach.report(piece for piece, _ in self._pieces)
        await task
        self._pieces.popleft()
        return piece

    async def _pull(self) -> None:
        reach = self._reach
        try:
            async for text in self._source:
                self._take(text)
                while reach.open and not self._fits():
                    self._room.clear()
                    await self._room.wait()
                if not reach.open:
                    return
        finally:  # also what the source gave before it raised, or was cancelled on its own
            self._begin_piece()

    def _end(self) -> None:
        """Take in that the source gives nothing more, be it that it was cancelled on its own."""
        self._reach.open = False
        self._news.set()

    def _fits(self) -> bool:
        """Tell whether there is room for the next text, and, where it begins a piece, for the whole of that."""
        filling = len(self._filling)
        return self._reach.fits(filling + 1 if filling else self._reach.size)

    def _take(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        if not self._filling:
            patience = PATIENCE if self._pieces else 0.0  # what finds nothing under way need not wait for company
            self._due = loop.time() + PATIENCE
            self._timer = loop.call_later(patience, self._begin_piece)
        self._filling.append(text)
        if len(self._filling) == self._reach.size or loop.time() >= self._due:
            self._begin_piece()

    def _begin_piece(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        texts, self._filling = self._filling, []
        if not texts or not self._reach.open:
            return
        piece = self._reach.cut(texts)
        self._pieces.append((piece, asyncio.get_running_loop().create_task(self._serve(piece))))
        self._news.set()

    async def _serve(self, piece: Piece) -> None:
        await piece.serve()
        if piece.error is not None:
            self._reach.open = False
            self._room.set()

    def _leave(self) -> list[asyncio.Task[None]]:
        self._reach.open = False
        self._reach.close()
        self._room.set()
        if self._timer is not None:
            self._timer.cancel()
        tasks = []
        while self._pieces:
            piece, task = self._pieces.popleft()
            piece.leave()
            task.cancel()
            tasks.append(task)
        return tasks


class _InTurns:
    """A plain iterator as an async one that lets the loop have its turn now and then."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._since = time.monotonic()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if time.monotonic() - self._since > BREATH:
            await asyncio.sleep(0)
            self._since = time.monotonic()
        try:
            return next(self._texts)
        except StopIteration:
            raise StopAsyncIteration from None
