"""Commits: a row is in the cache before a caller gets it."""

import threading
import weakref

import numpy as np
import pytest
from support.caches import DictCache
from support.embedders import fake_embedder

from embedkit_core.calls.waiting import wait
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer


class SlowCache(DictCache):
    """A cache whose writes wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()

    def set_many(self, items):
        self.writes += 1
        self.arrived.release()
        assert self.gate.wait(20)
        super().set_many(items)


class FailingCache(DictCache):
    def set_many(self, items):
        raise OSError("no space left on the device")


def test_a_caller_gets_a_row_only_after_it_is_cached():
    server, cache = FakeServer(), SlowCache()
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: seen.append(len(fake_embedder(server, cache=cache).embed(["one"]).vectors) * len(cache.rows))
    )
    thread.start()
    assert cache.arrived.acquire(timeout=20)
    thread.join(0.2)
    assert thread.is_alive()
    cache.gate.set()
    thread.join(20)
    assert seen == [1]


def test_an_import_waits_while_a_reply_is_written_to_the_cache():
    server, cache = FakeServer(), SlowCache()
    threads = [
        threading.Thread(target=fake_embedder(server, cache=cache).embed, args=(["one"],)),
        threading.Thread(
            target=fake_embedder(server, cache=cache).import_vectors,
            args=(["two"], [np.ones(8, np.float32)]),
            kwargs={"verify": 0},
        ),
    ]
    threads[0].start()
    assert cache.arrived.acquire(timeout=20)
    threads[1].start()
    assert not cache.arrived.acquire(timeout=0.2), "set_many was called while it ran"
    cache.gate.set()
    for thread in threads:
        thread.join(20)
    assert len(cache.rows) == cache.writes == 2


def test_a_slot_is_free_only_after_its_commit_and_other_requests_are_sent_meanwhile():
    server, cache = FakeServer(), SlowCache()
    bulk = fake_embedder(server, cache=cache, max_concurrency=2, max_batch_texts=32)
    cache.gate.set()
    bulk.embed(["warm up"])
    cache.gate.clear()
    thread = threading.Thread(target=bulk.embed, args=([f"text {i}" for i in range(320)],))
    thread.start()
    server.wait_for_requests(3)
    assert cache.arrived.acquire(timeout=20)
    assert cache.arrived.acquire(timeout=20)
    assert len(server.received) == 3
    cache.gate.set()
    thread.join(20)
    assert len(server.received) == 11


def test_a_failed_cache_write_loses_no_reply_and_is_logged_once(caplog):
    server = FakeServer()
    failing = fake_embedder(server, cache=FailingCache())
    for text in ("one", "two"):
        vector = failing.embed([text]).vectors[0]
        assert np.array_equal(vector, server.vector(text, server.received[-1].body))
    assert [record.getMessage() for record in caplog.records] == [
        "Cache write failed with OSError; vectors are not cached"
    ]


def test_waiting_writes_are_committed_in_one_transaction():
    server, cache = FakeServer(), SlowCache()
    bulk = fake_embedder(server, cache=cache, max_concurrency=8, max_batch_texts=32)
    cache.gate.set()
    bulk.embed(["warm up"])
    cache.gate.clear()
    server.hold()
    thread = threading.Thread(target=bulk.embed, args=([f"text {i}" for i in range(256)],))
    thread.start()
    server.wait_for_requests(9)
    server.release()
    while server.in_flight:
        cache.gate.wait(0.01)
    cache.gate.set()
    thread.join(20)
    assert len(cache.rows) == 257
    assert cache.writes < 1 + 8


def test_a_caller_with_another_cache_that_joins_during_a_commit_has_its_row_cached():
    server, slow, other = FakeServer(), SlowCache(), SlowCache()
    other.gate.set()
    first = threading.Thread(target=fake_embedder(server, cache=slow).embed, args=(["one"],))
    first.start()
    assert slow.arrived.acquire(timeout=20)
    joiner = fake_embedder(server, cache=other)
    second = threading.Thread(target=joiner.embed, args=(["one"],))
    second.start()
    account = engine().account(joiner.provider)
    wait_for(lambda: sum(len(item.waiters) for item in account.scheduler.registry.items.values()) == 2)
    slow.gate.set()
    first.join(20)
    second.join(20)
    assert len(other.rows) == 1
    assert joiner.embed(["one"]).usage.cache_hits == 1
    assert len(server.received) == 1


def test_a_row_finished_during_a_lookup_is_cached_for_its_caller():
    server, mine = FakeServer(), SlowCache()
    mine.gate.set()
    call = fake_embedder(server, cache=mine)._call(["one"], "document")
    call.prepare()
    fake_embedder(server).embed(["one"])
    wait(call)
    assert call.finish().usage.coalesced == 1
    assert len(mine.rows) == 1
    assert len(server.received) == 1


def wait_for(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("the condition never became true")


@pytest.mark.parametrize("kept", [True, False])
def test_only_the_caller_holds_the_result_of_a_finished_call(kept, tmp_path):
    """No reference cycle and no idle thread keeps the matrix alive."""
    server = FakeServer()
    caller = fake_embedder(server, cache=tmp_path if kept else False)
    result = caller.embed([f"text {i}" for i in range(100)])
    matrix = weakref.ref(result.vectors)
    del result
    settled = threading.Event()
    while matrix() is not None:  # the last frame of the engine may still be running
        settled.clear()
        engine().call(engine().account(caller.provider), settled.set)
        assert settled.wait(10)
