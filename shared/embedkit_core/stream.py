"""A stream of texts: rows in order, a bounded part of it in memory, several pieces of it under way at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import TYPE_CHECKING

from embedkit_core.engine.current import refuse_engine_thread
from embedkit_core.errors import EmbedKitError, InputError
from embedkit_core.pieces import Piece, Progress
from embedkit_core.plan import no_texts, refuse_no_list
from embedkit_core.roles import Role
from embedkit_core.types import Vectors

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder

PATIENCE = 0.1  # seconds after which a piece goes out as it is, so that a slow source holds nothing back
TURN = 64  # rows after which an async caller's loop has its turn
BREATH = 0.005  # seconds for which a plain iterator may hold an async caller's loop, unless one text takes longer


class Stream:
    """A stream for a caller that may block, and pulls the texts itself."""

    def __init__(self, owner: Embedder, role: Role, texts: Iterable[str]) -> None:
        if isinstance(texts, AsyncIterable) and not isinstance(texts, Iterable):
            raise InputError("embed_iter() cannot wait for an async source; use aembed_iter()", ())
        self._source = _iterator(texts)
        self._progress = Progress(owner, role)
        self._pieces: deque[Piece] = deque()
        self._end: Exception | None = None
        self._quick = False
        self._process = os.getpid()

    def rows(self) -> Generator[Vectors, None, None]:
        """Give float32 (dimensions,) for each text, and withdraw what is pending when it is closed."""
        progress = self._progress
        error: Exception | None = None
        try:
            while error is None and (piece := self._next()) is not None:
                if piece.error is not None:
                    self._leave()
                for place in range(len(piece.rows)):
                    yield piece.rows[place].copy()
                progress.gave(piece)
                error = progress.error_after(piece)
                del piece  # its rows, before the next piece is waited for
            if error := error or self._end:
                raise error
        finally:
            error = self._end = None  # an error that is raised holds this frame
            self._leave()

    def _next(self) -> Piece | None:
        self._check_place()
        self._pull_ahead()
        if not self._pieces:
            return None
        self._pieces[0].done.wait()
        piece = self._pieces.popleft()
        piece.finish()
        return piece

    def _check_place(self) -> None:
        if os.getpid() != self._process:
            raise EmbedKitError("this stream was begun before a fork and belongs to the parent process; begin another")
        refuse_engine_thread("embed_iter")

    def _pull_ahead(self) -> None:
        """Begin pieces while there is room; finished rows are given first, unless the source takes no time."""
        progress = self._progress
        once = self._quick
        while progress.open and progress.fits(progress.size) and (once or not self._ready()):
            self._begin_piece()
            once = False

    def _ready(self) -> bool:
        return bool(self._pieces) and self._pieces[0].done.is_set()

    def _begin_piece(self) -> None:
        progress = self._progress
        if not (texts := self._pull(progress.size)):
            return
        piece = progress.cut(texts)
        self._pieces.append(piece)
        piece.begin()
        if piece.error is not None:
            progress.open = False

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
                self._progress.open = False
        except Exception as error:
            self._progress.open = False
            self._end = error
        self._quick = len(texts) == n
        return texts

    def _leave(self) -> None:
        self._progress.open = False
        while self._pieces:
            piece = self._pieces.popleft()
            if os.getpid() == self._process:
                piece.leave()


class AsyncStream:
    """A stream for a caller on a loop; a task of its own pulls the texts, so that nothing waits for a slow source."""

    def __init__(self, owner: Embedder, role: Role, texts: Iterable[str] | AsyncIterable[str]) -> None:
        self._source = aiter(texts) if isinstance(texts, AsyncIterable) else _InTurns(_iterator(texts))
        self._progress = Progress(owner, role)
        self._pieces: deque[tuple[Piece, asyncio.Task[None]]] = deque()
        self._filling: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._news = asyncio.Event()  # for the caller: a piece was begun, or the source has ended
        self._room = asyncio.Event()  # for the source: rows were taken, or nothing more is wanted

    async def rows(self) -> AsyncGenerator[Vectors, None]:
        """Give float32 (dimensions,) for each text, and withdraw what is pending when it is closed."""
        progress = self._progress
        error: Exception | None = None
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
                progress.gave(piece)
                self._room.set()
                error = progress.error_after(piece)
                del piece  # its rows, before the next piece is waited for
            if error is not None:
                raise error
            await pulling  # for what the source has raised
        finally:
            error = None  # an error that is raised holds this frame
            tasks = [pulling, *self._leave()]
            pulling.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self) -> Piece | None:
        while not self._pieces:
            if not self._progress.open:
                return None
            self._news.clear()
            await self._news.wait()
        piece, task = self._pieces[0]
        await task
        self._pieces.popleft()
        return piece

    async def _pull(self) -> None:
        progress = self._progress
        try:
            async for text in self._source:
                self._take(text)
                while progress.open and not self._fits():
                    self._room.clear()
                    await self._room.wait()
                if not progress.open:
                    return
        finally:  # also what the source gave before it raised, or was cancelled on its own
            self._begin_piece()

    def _end(self) -> None:
        """Take in that the source gives nothing more, be it that it was cancelled on its own."""
        self._progress.open = False
        self._news.set()

    def _fits(self) -> bool:
        """Tell whether there is room for the next text, and, where it begins a piece, for the whole of that."""
        filling = len(self._filling)
        return self._progress.fits(filling + 1 if filling else self._progress.size)

    def _take(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        if not self._filling:
            patience = PATIENCE if self._pieces else 0.0  # what finds nothing under way need not wait for company
            self._due = loop.time() + PATIENCE
            self._timer = loop.call_later(patience, self._begin_piece)
        self._filling.append(text)
        if len(self._filling) == self._progress.size or loop.time() >= self._due:
            self._begin_piece()

    def _begin_piece(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        texts, self._filling = self._filling, []
        if not texts or not self._progress.open:
            return
        piece = self._progress.cut(texts)
        self._pieces.append((piece, asyncio.get_running_loop().create_task(self._serve(piece))))
        self._news.set()

    async def _serve(self, piece: Piece) -> None:
        await piece.serve()
        if piece.error is not None:
            self._progress.open = False
            self._room.set()

    def _leave(self) -> list[asyncio.Task[None]]:
        self._progress.open = False
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


def _iterator(texts: Iterable[str]) -> Iterator[str]:
    refuse_no_list(texts)
    try:
        return iter(texts)
    except TypeError:
        raise no_texts(texts) from None
