"""How a caller waits for the engine, in both colours; what is done meanwhile is done on the caller's side."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from embedkit_core.calls.rows import ListBuffer, MatrixBuffer
from embedkit_core.engine.scheduler.items import Ticket
from embedkit_core.observability.progress import REPORT_INTERVAL, ProgressReporter

logger = logging.getLogger("embedkit_core")


class Waits:
    """The waiting of a call that is to be submitted: its ticket, and the rows that land meanwhile."""

    __slots__ = ("_reporter", "_rows", "_ticket")

    _reporter: ProgressReporter | None
    _rows: MatrixBuffer | ListBuffer
    _ticket: Ticket | None

    def submit(self, wake: Callable[[], None]) -> None:
        """Hand over what the engine is to do; `wake` is called on its side when all is done, and when rows land."""
        raise NotImplementedError

    def report(self, *, finished: bool = False) -> None:
        """Tell the user how far it is, where they want to know."""
        raise NotImplementedError

    def log(self) -> None:
        """Log what the engine noted for this call, on the caller's side."""
        notes = self._ticket.log_events if self._ticket is not None else ()
        while notes:
            note = notes.popleft()
            logger.log(note.level, "%s", note.text)

    def wait(self) -> None:
        """Wait for the engine, from a thread that may block."""
        awake = threading.Event()
        for made in self._while_waiting(awake.set):
            if not made:
                awake.wait(None if self._reporter is None else REPORT_INTERVAL)
                awake.clear()

    async def await_(self) -> None:
        """Wait for the engine, from a coroutine on any loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        awake = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed
                loop.call_soon_threadsafe(awake.set)

        for made in self._while_waiting(wake):
            if made:
                await asyncio.sleep(0)
            elif self._reporter is None:
                await awake.wait()
                awake.clear()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPORT_INTERVAL):
                        await awake.wait()
                awake.clear()

    def _while_waiting(self, wake: Callable[[], None]) -> Iterator[bool]:
        """Submit, and give True after each slice of lists that was made, False when there is nothing to do but wait."""
        rows = self._rows if isinstance(self._rows, ListBuffer) else None
        if rows is not None:
            rows.landed = wake
        self.submit(wake)
        assert self._ticket is not None
        self._ticket.notify = wake
        while True:
            self.log()
            closed = self._ticket.closed  # before the look at what has landed: nothing lands after it
            if rows is not None:
                for _ in rows.slices():
                    yield True
            if closed:
                return
            if self._reporter is not None and self._reporter.due():
                self.report()
            yield False
