"""A database that another process has locked delays nobody for long, and loses no vector that a caller waits for."""

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
    monkeypatch.setattr(connections, "WRITE_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(connections, "_READ_WAIT_SECONDS", 0.05)
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
    assert embedder.tiered_cache.backend.stats.write_failures == 5
    assert len(server.received) == 5


def test_a_write_waits_for_the_writes_of_other_processes(tmp_path, monkeypatch):
    """It polls the lock, although SQLite alone would wait for a shorter time."""
    monkeypatch.setattr(connections, "_READ_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(connections, "WRITE_WAIT_SECONDS", 60.0)
    cache = DiskCache(tmp_path)
    entry = Entry(np.ones(8, np.float32))
    cache.set_many([(KEYS[0], entry)])
    other = sqlite3.connect(tmp_path / "embedkit-v1" / "cache.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    polls = []
    begins = connections._begins

    def counting(connection, **options):
        polls.append(options)
        if len(polls) == 3:
            other.execute("ROLLBACK")
        return begins(connection, **options)

    monkeypatch.setattr(connections, "_begins", counting)
    cache.set_many([(KEYS[1], entry)])
    other.close()
    assert cache.get_many(KEYS).keys() == set(KEYS[:2])
    assert len(polls) == 3
