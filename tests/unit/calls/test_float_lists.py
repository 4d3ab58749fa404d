"""From a matrix to lists of Python floats: the same numbers, the collector as it was, and the caller's loop free."""

import asyncio
import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.openai_server import OpenAIServer, vector_of

from embedkit_core.adapters.base import ato_lists, to_lists
from embedkit_core.common.float_lists import SLICE, collector_paused
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MATRICES = arrays.arrays(np.float32, st.tuples(st.integers(0, 3 * SLICE), st.integers(0, 5)))
LONGEST_STALL = 0.5  # seconds in which the loop answers nobody because it is busy itself
BEATS = 60


@pytest.fixture(autouse=True)
def _collector_on():
    assert gc.isenabled()
    yield
    assert gc.isenabled()


@given(MATRICES)
def test_lists_are_the_matrix_in_python_floats(matrix):
    lists = to_lists(matrix)
    assert np.array_equal(np.array(lists, dtype=np.float32).reshape(matrix.shape), matrix, equal_nan=True)
    assert all(type(number) is float for row in lists for number in row)


@given(MATRICES)
def test_the_async_door_gives_the_same_lists(matrix):
    assert repr(asyncio.run(ato_lists(matrix))) == repr(to_lists(matrix)) == repr(matrix.tolist())


async def test_the_loop_runs_between_slices():
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    await ato_lists(np.zeros((10 * SLICE, 2), dtype=np.float32))
    other.cancel()
    assert turns >= 9


async def test_the_collector_is_on_whenever_the_loop_runs():
    seen = []

    async def watch():
        while True:
            seen.append(gc.isenabled())
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    await ato_lists(np.zeros((4 * SLICE, 2), dtype=np.float32))
    watcher.cancel()
    assert seen
    assert all(seen)


def test_the_collector_is_off_inside_and_on_after_the_outermost():
    with collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_failure_inside_restores_the_collector():
    with pytest.raises(ZeroDivisionError), collector_paused(), collector_paused():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_of_several_threads_restores_the_collector():
    inside, leave_first, leave_last = threading.Barrier(3), threading.Event(), threading.Event()

    def pause(leave: threading.Event) -> None:
        with collector_paused():
            inside.wait(10)
            leave.wait(10)

    first, last = (threading.Thread(target=pause, args=[leave]) for leave in (leave_first, leave_last))
    first.start()
    last.start()
    inside.wait(10)
    leave_first.set()
    first.join(10)
    assert not gc.isenabled()
    leave_last.set()
    last.join(10)
    assert gc.isenabled()


def test_many_threads_at_once_leave_the_collector_as_it_was():
    matrix = np.ones((2 * SLICE, 3), dtype=np.float32)
    threads = [threading.Thread(target=lambda: [to_lists(matrix) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert gc.isenabled()


class Heart:
    """Beats every 5 ms on the loop it was started on, and remembers the most work between two beats.

    Work is the loop thread's own seconds of processor time: those of other threads and processes are not its fault.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, time.thread_time() - last)
            last = time.thread_time()

    def stop(self) -> None:
        self._task.cancel()


@pytest.fixture
def _others_objects_set_apart():
    """Keep collections on the loop thread from walking all that the test run has loaded: that work is not ours."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_others_objects_set_apart")
@pytest.mark.parametrize("host", ["langchain", "llamaindex"])
async def test_the_callers_loop_stays_free_while_5000_texts_are_embedded(host):
    texts = [f"text {i}" for i in range(5000)]
    with OpenAIServer() as server:
        options = {"model": "openai:text-embedding-3-small", "base_url": server.base_url, "api_key": "test-key"}
        if host == "langchain":
            embed = EmbedKitEmbeddings(**options, cache=False).aembed_documents
        else:
            embed = EmbedKitEmbedding(**options, cache=False).aget_text_embedding_batch
        server.hold()
        heart = Heart()
        work = asyncio.create_task(embed(texts))
        await asyncio.to_thread(server.wait_for_requests, 1)
        for _ in range(BEATS):  # the loop runs however long the server takes
            await asyncio.sleep(0.005)
        server.release()
        rows = await work
        heart.stop()
    assert len(rows) == 5000
    assert rows[4999] == vector_of("text 4999").tolist()
    assert heart.longest < LONGEST_STALL
