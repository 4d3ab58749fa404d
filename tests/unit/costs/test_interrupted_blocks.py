"""Ctrl-C at the edges of track_usage blocks, with real signals."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Callable, Iterator

import pytest
from support.embedders import fake_embedder

from embedkit_core import track_usage
from embedkit_core.costs.tracker import UsageTracker, active_trackers
from embedkit_core.testing import FakeServer

INTERRUPTS = 100


class Interrupted(BaseException):
    """Raised by the signal handler, like KeyboardInterrupt."""


class Interrupter:
    """Sends signals to the process; the handler raises while a block is armed."""

    def __init__(self) -> None:
        self.is_armed = False

    def interrupts(self, run: Callable[[UsageTracker], None], tracker: UsageTracker) -> bool:
        """Return True if a signal interrupted a function."""
        try:
            self.is_armed = True
            run(tracker)
            self.is_armed = False
        except Interrupted:
            return True
        return False

    def handle(self, number: int, frame: object) -> None:
        if self.is_armed:
            self.is_armed = False
            raise Interrupted


@pytest.fixture
def interrupter() -> Iterator[Interrupter]:
    made = Interrupter()
    gc.collect()
    gc.disable()  # an exception in a finalizer would be ignored
    before = signal.signal(signal.SIGVTALRM, made.handle)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)  # of processor time
    try:
        yield made
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        gc.enable()


def enter(tracker: UsageTracker) -> None:
    with tracker:
        pass


def enter_bound(tracker: UsageTracker) -> None:
    tracker.bind(len)("")


@pytest.mark.parametrize("run", [enter, enter_bound])
def test_an_interrupted_block_leaves_no_budget_to_later_calls(interrupter, run):
    trackers, interrupted = [], 0
    while interrupted < INTERRUPTS:
        trackers.append(track_usage(budget_tokens=0))
        interrupted += interrupter.interrupts(run, trackers[-1])
        assert active_trackers() == ()
    assert fake_embedder(FakeServer()).embed(["later"]).usage.sent == 1


def test_an_interrupted_tracker_can_be_used_again(interrupter):
    tracker = track_usage()
    for _ in range(INTERRUPTS):
        interrupter.interrupts(enter, tracker)
        with tracker:
            assert active_trackers() == (tracker,)
        assert active_trackers() == ()


def test_a_block_in_an_exit_stack_ends_with_it():
    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(track_usage())
        assert active_trackers() == (tracker,)
    assert active_trackers() == ()


def test_a_bound_call_inside_the_block_is_counted_once():
    embedder = fake_embedder(FakeServer())
    with track_usage() as usage:
        usage.bind(embedder.embed)(["a"])
        embedder.embed(["b"])
    embedder.embed(["c"])
    assert usage.sent == 2


async def test_a_task_that_outlives_the_block_is_counted_until_the_block_ends():
    embedder = fake_embedder(FakeServer())
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await embedder.aembed(["during the block"])
        began.set()
        await ended.wait()
        await embedder.aembed(["after", "the", "block"])

    with track_usage() as usage:
        task = asyncio.create_task(work())
        await began.wait()
    ended.set()
    await task
    assert usage.sent == 1
