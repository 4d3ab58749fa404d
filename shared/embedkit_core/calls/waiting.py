"""Waiting for the engine, blocking or on an event loop. Lists, progress and log lines are made meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from embedkit_core.calls.rows import ListBuffer, MatrixBuffer
from embedkit_core.common.threads import WakeFlag, running_loop
from embedkit_core.engine.scheduler.items import Ticket
from embedkit_core.observability.progress import REPORT_INTERVAL, ProgressReporter


class PendingCall(Protocol):
    """A prepared call with texts for the engine.

    Attributes:
        reporter: The progress reporter, None if no progress was requested.
        rows: The buffer that the engine fills.
        ticket: The handle of the call at the engine, None before `submit`.
    """

    reporter: ProgressReporter | None
    rows: MatrixBuffer | ListBuffer
    ticket: Ticket | None

    def submit(self, wake: Callable[[], None]) -> None:
        """Submit the cache misses; the engine calls `wake` on its thread when all of them are done."""

    def report(self, *, finished: bool = False) -> None:
        """Report progress."""

    def log(self) -> None:
        """Write the log lines that the engine queued for this call."""


def wait(call: PendingCall) -> None:
    """Submit a call and block the current thread until the engine has finished it."""
    awake = WakeFlag()
    for made_lists in steps(call, awake.set):
        if not made_lists:
            awake.wait(None if call.reporter is None else REPORT_INTERVAL)
            awake.clear()


async def await_(call: PendingCall) -> None:
    """Submit a call and wait until the engine has finished it, on any event loop."""
    import asyncio

    loop = running_loop()
    awake = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed
            loop.call_soon_threadsafe(awake.set)

    for made_lists in steps(call, wake):
        if made_lists:
            await asyncio.sleep(0)
        elif call.reporter is None:
            await awake.wait()
            awake.clear()
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL):
                    await awake.wait()
            awake.clear()


def steps(call: PendingCall, wake: Callable[[], None]) -> Iterator[bool]:
    """Submit a call and do the caller's share of the work until the engine has finished.

    Yields:
        True after each slice of lists; False if there is nothing to do until `wake` is called.
    """
    buffer = call.rows if isinstance(call.rows, ListBuffer) else None
    if buffer is not None:
        buffer.on_rows = wake
    call.submit(wake)
    ticket = call.ticket
    assert ticket is not None
    ticket.notify = wake
    while True:
        call.log()
        closed = ticket.closed  # read before the buffer: no rows arrive after it is set
        if buffer is not None:
            for _ in buffer.slices():
                yield True
        if closed:
            return
        if call.reporter is not None and call.reporter.due():
            call.report()
        yield False
