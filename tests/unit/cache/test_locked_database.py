"""A database that another process has locked delays calls only briefly, and loses no vector that a caller waits for."""

import sqlite3
import threading
import time

import numpy as np
import pytest
from support.embedders import fake_embedder

from embedkit_core.cache.disk import cache as disk
from embedkit_core.cache.disk import pool as connections
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.common.types import Entry
from embedkit_core.testing import FakeServer

KEYS = [bytes([n]) * 32 for n in range(10)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder with ten entries, and short waits for locks."""
    monkeypatch.setattr(disk, "WRITE_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(disk, "LOCKED_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("embedkit_core.cache.disk.connections.READ_WAIT_SECONDS", 0.05)
    cache = DiskCache(tmp_path)
    cache.set_many([(key, Entry(np.ones(8, np.float32))) for key in KEYS])
    cache.close()
    return tmp_path


@pytest.fixture
def lock(folder):
    """A connection that has locked the database of `folder` for readers and writers."""
    other = sqlite3.connect(folder / "embedkit-v1" / "cache.db", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    yield other
    other.close()


@pytest.fixture
def attempts(monkeypatch):
    """The attempts to open a database."""
    seen = []
    open_checked = disk.open_checked

    def counting(path):
        seen.append(path)
        return open_checked(path)

    monkeypatch.setattr(disk, "open_checked", counting)
    return seen


def pass_time(monkeypatch, seconds):
    later = time.monotonic() + seconds
    monkeypatch.setattr(disk.time, "monotonic", lambda: later)


def test_a_locked_database_is_read_again_only_after_a_while(folder, lock, attempts, monkeypatch, caplog):
    cache = DiskCache(folder)
    for _ in range(5):
        assert cache.get_many(KEYS) == {}
    assert len(attempts) == 1
    lock.close()
    assert cache.get_many(KEYS) == {}
    pass_time(monkeypatch, disk.READ_RETRY_SECONDS)
    assert cache.get_many(KEYS).keys() == set(KEYS)
    assert [record.getMessage() for record in caplog.records if "database is locked" in record.getMessage()] == [
        caplog.messages[0]
    ]


def test_many_threads_wait_for_a_locked_database_together_and_not_in_turn(folder, lock, attempts):
    cache = DiskCache(folder)
    barrier = threading.Barrier(8)

    def read():
        barrier.wait()
        assert cache.get_many(KEYS) == {}

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) == 1


def test_a_write_shows_that_a_database_can_be_read_again(folder, lock, attempts):
    cache = DiskCache(folder)
    assert cache.get_many(KEYS) == {}
    lock.close()
    cache.set_many([(b"k" * 32, Entry(np.ones(8, np.float32)))])
    assert cache.get_many(KEYS).keys() == set(KEYS)


@pytest.mark.parametrize("statements", [("PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"), ("BEGIN IMMEDIATE",)])
def test_a_locked_cache_loses_no_vector_of_a_caller(folder, statements):
    """The wait is short: reads and writes that another process has blocked are left alone for a while."""
    server = FakeServer()
    embedder = fake_embedder(server, cache=folder)
    other = sqlite3.connect(folder / "embedkit-v1" / "cache.db", isolation_level=None)
    for statement in statements:
        other.execute(statement)
    for n in range(5):
        assert len(embedder.embed_query(f"question {n}")) == embedder.dimensions
    other.close()
    assert embedder.vector_cache.backend.stats.write_failures == 5
    assert len(server.received) == 5


@pytest.fixture
def writer(folder):
    """A connection that writes to the database of `folder`, as another process does."""
    other = sqlite3.connect(folder / "embedkit-v1" / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


@pytest.fixture
def at_each_poll(monkeypatch):
    """A list of functions; a write that waits calls the next one at each poll."""
    actions = []
    last_commit = connections._last_commit

    def polling(connection):
        actions.pop(0)()
        return last_commit(connection)

    monkeypatch.setattr(connections, "_last_commit", polling)
    monkeypatch.setattr(connections, "_WRITE_POLL_SECONDS", 0.001)
    return actions


def entries(count):
    return [(bytes([100 + n]) * 32, Entry(np.ones(8, np.float32))) for n in range(count)]


def test_a_write_waits_as_long_as_other_processes_commit(folder, writer, at_each_poll):
    def commit():
        writer.execute("COMMIT")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE Cache SET store_time = store_time + 1")

    writer.execute("UPDATE Cache SET store_time = store_time + 1")

    at_each_poll += [commit] * 5 + [lambda: writer.execute("COMMIT")]
    cache = DiskCache(folder)
    cache.set_many(entries(1))
    assert cache.stats.write_failures == 0
    assert at_each_poll == []


def test_a_bulk_write_waits_longer_than_that_of_a_query(folder, writer, at_each_poll, monkeypatch):
    monkeypatch.setattr(disk, "BULK_WAIT_SECONDS", 60.0)
    at_each_poll += [lambda: None] * 5 + [writer.close]
    cache = DiskCache(folder)
    cache.set_many(entries(disk.MAX_QUERY_ROWS + 1))
    assert cache.stats.write_failures == 0
    assert at_each_poll == []


def test_after_a_blocked_write_others_wait_shortly_until_one_succeeds(folder, writer, at_each_poll, monkeypatch):
    monkeypatch.setattr(disk, "BULK_WAIT_SECONDS", 60.0)
    at_each_poll += [lambda: None] * 10
    cache = DiskCache(folder)
    cache.set_many(entries(1))
    assert cache.stats.write_failures == 1
    cache.set_many(entries(50))
    assert cache.stats.write_failures == 51
    writer.close()
    cache.set_many(entries(50))
    assert cache.stats.write_failures == 51
    assert len(cache.get_many([key for key, _ in entries(50)])) == 50
