"""Conversion of a matrix to lists of Python floats: equal numbers, a restored garbage collector, a free event loop."""

import asyncio
import gc
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.openai_server import OpenAIServer, vector_of
from support.scripts import finish, start

from embedkit_core.common.float_lists import RELAXED_THRESHOLD, ROWS_PER_SLICE, relaxed_gc, to_lists
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MATRICES = arrays.arrays(np.float32, st.tuples(st.integers(0, 3 * ROWS_PER_SLICE), st.integers(0, 5)))
LONGEST_STALL = 0.5  # the most seconds for which the event loop may be busy
WAKE_UPS = 60


@pytest.fixture(autouse=True)
def _restored_collector():
    found = gc.get_threshold()
    assert gc.isenabled()
    yield
    assert gc.isenabled()
    assert gc.get_threshold() == found


@given(MATRICES)
def test_lists_equal_the_matrix_in_python_floats(matrix):
    lists = to_lists(matrix)
    assert np.array_equal(np.array(lists, dtype=np.float32).reshape(matrix.shape), matrix, equal_nan=True)
    assert all(type(number) is float for row in lists for number in row)
    assert repr(lists) == repr(matrix.tolist())


def collections(make) -> int:
    """Return the number of garbage collections during a call of `make`."""
    starts = []
    gc.collect()
    gc.callbacks.append(watch := lambda phase, info: starts.append(phase == "start"))
    try:
        make()
    finally:
        gc.callbacks.remove(watch)
    return sum(starts)


def test_20_000_lists_cause_at_most_one_garbage_collection():
    matrix = np.zeros((20_000, 2), dtype=np.float32)
    assert collections(lambda: to_lists(matrix)) <= 1  # once the threshold is restored
    assert collections(matrix.tolist) > 5


def test_garbage_of_other_threads_is_collected_while_the_collector_is_relaxed():
    with relaxed_gc():
        assert gc.isenabled()
        assert collections(lambda: [[] for _ in range(RELAXED_THRESHOLD + 5_000)]) > 0


def test_the_collector_is_relaxed_inside_and_restored_after_the_outermost_block():
    found = gc.get_threshold()
    with relaxed_gc():
        with relaxed_gc():
            assert gc.get_threshold() == (RELAXED_THRESHOLD, *found[1:])
        assert gc.get_threshold()[0] == RELAXED_THRESHOLD
    assert gc.get_threshold() == found


@pytest.mark.parametrize("own", [0, RELAXED_THRESHOLD * 2])
def test_a_higher_threshold_of_the_user_is_kept(own):
    found = gc.get_threshold()
    gc.set_threshold(own, *found[1:])
    try:
        with relaxed_gc():
            assert gc.get_threshold()[0] == own
        assert gc.get_threshold()[0] == own
    finally:
        gc.set_threshold(*found)


def test_an_exception_inside_restores_the_collector():
    found = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), relaxed_gc(), relaxed_gc():
        raise ZeroDivisionError
    assert gc.get_threshold() == found


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with relaxed_gc():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_of_several_threads_restores_the_collector():
    found = gc.get_threshold()
    inside, leave_first, leave_last = threading.Barrier(3), threading.Event(), threading.Event()

    def relax(leave: threading.Event) -> None:
        with relaxed_gc():
            inside.wait(10)
            leave.wait(10)

    first, last = (threading.Thread(target=relax, args=[leave]) for leave in (leave_first, leave_last))
    first.start()
    last.start()
    inside.wait(10)
    leave_first.set()
    first.join(10)
    assert gc.get_threshold()[0] == RELAXED_THRESHOLD
    leave_last.set()
    last.join(10)
    assert gc.get_threshold() == found


def test_many_threads_at_once_restore_the_collector():
    found = gc.get_threshold()
    matrix = np.ones((2 * ROWS_PER_SLICE, 3), dtype=np.float32)
    threads = [threading.Thread(target=lambda: [to_lists(matrix) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert gc.get_threshold() == found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_meanwhile_has_the_original_collector(tmp_path):
    with OpenAIServer() as server:
        process = start(
            """
            import gc
            from embedkit_core.common.float_lists import relaxed_gc
            found = gc.get_threshold()
            with relaxed_gc():
                pid = os.fork()
                if pid == 0:
                    os._exit(7 if gc.isenabled() and gc.get_threshold() == found else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            """,
            server.base_url,
            tmp_path,
        )
        assert finish(process) == "7\n"


class LoopMonitor:
    """A task that wakes every 5 ms and records the most work of the event loop between two wake-ups.

    Work is the loop thread's own seconds of processor time: those of other threads and processes are not its fault.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.005)
            self.longest = max(self.longest, time.thread_time() - last)
            last = time.thread_time()

    def stop(self) -> None:
        self._task.cancel()


@pytest.fixture
def _frozen_objects():
    """Exclude the objects of the test run from garbage collections on the loop thread."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_frozen_objects")
@pytest.mark.parametrize("framework", ["langchain", "llamaindex"])
async def test_the_event_loop_stays_free_while_5000_texts_are_embedded(framework):
    texts = [f"text {i}" for i in range(5000)]
    with OpenAIServer() as server:
        options = {"model": "openai:text-embedding-3-small", "base_url": server.base_url, "api_key": "test-key"}
        if framework == "langchain":
            embed = EmbedKitEmbeddings(**options, cache=False).aembed_documents
        else:
            embed = EmbedKitEmbedding(**options, cache=False).aget_text_embedding_batch
        server.hold()
        monitor = LoopMonitor()
        work = asyncio.create_task(embed(texts))
        await asyncio.to_thread(server.wait_for_requests, 1)
        for _ in range(WAKE_UPS):  # the loop runs however long the server takes
            await asyncio.sleep(0.005)
        server.release()
        rows = await work
        monitor.stop()
    assert len(rows) == 5000
    assert rows[4999] == vector_of("text 4999").tolist()
    assert monitor.longest < LONGEST_STALL
