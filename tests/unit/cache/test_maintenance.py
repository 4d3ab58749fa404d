"""Maintenance of a cache folder: contents by vector space, copies that arrive, deletion of what is unused."""

import contextlib
import sqlite3
import threading
import time

import numpy as np
import pytest
from support.embedders import fake_embedder
from support.openai_client import MODEL
from support.openai_server import OpenAIServer
from support.read_only import READ_ONLY_COPY
from test_disk_cache import POSIX, entries, key, run

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.cache import Entry
from embedkit_core.cache.disk import pool as connections
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.disk.folder import DATABASE, OWN_FOLDER
from embedkit_core.cache.disk.pool import RENEW_AFTER_SECONDS
from embedkit_core.cache.maintenance import CacheFolder
from embedkit_core.common.errors import CacheError
from embedkit_core.testing import FakeServer

DAY = 86400.0
A, B = "openai:a/8/float32", "openai:vendor/b@http://host/v1/8/float32/0a1b2c3d"


def of_space(numbers, space, width=8):
    return [(key(n), Entry(np.full(width, n, np.float32), space=space)) for n in numbers]


def sql(folder, statement, *values):
    """Read or change the database through a separate connection."""
    database = folder / OWN_FOLDER / DATABASE
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


@pytest.fixture
def folder(tmp_path):
    """A closed cache with 3 vectors of one space, 2 of another, and 1 of none."""
    cache = DiskCache(tmp_path / "cache")
    cache.set_many([*of_space(range(3), A), *of_space(range(3, 5), B), *of_space([5], None)])
    cache.close()
    return tmp_path / "cache"


def spaces(folder):
    return {space.space: space.vectors for space in CacheFolder(folder).stats().spaces}


# Spaces


@pytest.mark.parametrize("dtype", ["float32", "ubinary"])
def test_vectors_are_stored_with_the_space_of_the_embedder(tmp_path, dtype):
    with OpenAIServer() as server:
        for model in (MODEL, "unknown-model"):
            settings = {"base_url": server.base_url, "api_key": "test-key", "cache": tmp_path, "dtype": dtype}
            with Embedder(model, **settings) as embedder:
                result = embedder.embed(["one", "two"])
                embedder.embed_query("three")
            assert spaces(tmp_path)[result.space] == 3
            assert "unknown/" not in result.space
    assert len(spaces(tmp_path)) == 2


def test_imported_vectors_are_stored_with_the_space_of_the_embedder(tmp_path):
    embedder = Embedder(MODEL, api_key="x", dimensions=8, cache=tmp_path)
    embedder.import_vectors(["one"], [[1.0] + [0.0] * 7], verify=0)
    assert spaces(tmp_path) == {embedder.space: 1}


def test_coalesced_and_split_texts_have_a_space_too(tmp_path):
    server = FakeServer()
    with fake_embedder(server, cache=tmp_path, max_batch_texts=2) as embedder:
        embedder.embed([f"text {n}" for n in range(7)])
    assert spaces(tmp_path) == {embedder.space: 7}


def test_stats_has_the_number_size_and_last_use_of_each_space(folder):
    sql(folder, "UPDATE Cache SET access_time = 1000000.0 WHERE tag = ?", A)
    stats = CacheFolder(folder).stats()
    assert stats.vectors == 6
    assert [(space.space, space.vectors) for space in stats.spaces] == [(A, 3), (B, 2), (None, 1)]
    assert [space.bytes for space in stats.spaces] == [3 * 44, 2 * 44, 44]
    assert stats.spaces[0].last_used == 1000000.0
    assert abs(stats.spaces[1].last_used - time.time()) < DAY


@pytest.mark.parametrize("tag", [7, b"blob", "\x1b[31mred", "x" * 2000, "", "na\u00efve\u202e", "a\x00\x1b[31m"])
def test_a_tag_that_is_no_name_is_unknown(folder, tag):
    sql(folder, "UPDATE Cache SET tag = ? WHERE tag = ?", tag, A)
    found = spaces(folder)
    assert found == ({B: 2, None: 4} if tag else {"": 3, B: 2, None: 1})


@pytest.mark.parametrize("name", [B, "openai:vendor/b", "openai:vendor/b@http://host/v1"])
def test_a_model_is_found_by_its_name_and_by_its_space(folder, name):
    assert list(CacheFolder(folder).stats().of_model(name)) == [B]


@pytest.mark.parametrize("name", ["openai:vendor", "openai:", "", "openai:vendor/b@http://host", "unknown", "a"])
def test_a_part_of_a_name_is_not_a_model(folder, name):
    with pytest.raises(ConfigurationError, match=r"model: the cache has no vectors of this model \(got "):
        CacheFolder(folder).clear(model=name)
    assert len(spaces(folder)) == 3


def test_a_misspelled_model_gets_the_name_that_is_there(folder):
    with pytest.raises(ConfigurationError, match=r"did you mean 'openai:vendor/b@http://host/v1'"):
        CacheFolder(folder).stats().of_model("openai:vender/b@http://host/v1")


# Copies


def test_a_copy_has_the_spaces_of_its_source(folder, tmp_path):
    assert CacheFolder(folder).copy_to(CacheFolder(tmp_path / "copy")) == 6
    assert spaces(tmp_path / "copy") == spaces(folder)


def test_a_copy_of_a_model_has_its_vectors_alone(folder, tmp_path):
    assert CacheFolder(folder).copy_to(CacheFolder(tmp_path / "copy"), model="openai:a") == 3
    assert spaces(tmp_path / "copy") == {A: 3}


def test_a_copy_of_vectors_without_a_space_keeps_the_known_one(folder, tmp_path):
    DiskCache(tmp_path / "old").set_many(of_space(range(3), None))
    assert CacheFolder(tmp_path / "old").copy_to(CacheFolder(folder)) == 3
    assert spaces(folder) == {A: 3, B: 2, None: 1}


@POSIX
def test_a_copy_into_a_folder_that_is_a_link_is_an_error(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / OWN_FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match=r"only 0 vectors arrived, then writing failed"):
        CacheFolder(folder).copy_to(CacheFolder(tmp_path / "link"))
    assert not list((tmp_path / "elsewhere").iterdir())


FULL_DISK = """
import resource, sys
import numpy as np
from embedkit_core.cache import Entry, open_cache
from embedkit_core.cache.maintenance import CacheFolder
from embedkit_core.common.errors import CacheError
source, target, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
open_cache(source).set_many([(n.to_bytes(32, "little"), Entry(np.full(1536, n, "f4"))) for n in range(3000)])
CacheFolder(target).stats()  # loads all that is needed
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    copied = CacheFolder(source).copy_to(CacheFolder(target))
except CacheError as error:
    message = str(error)
else:
    raise AssertionError(f"{copied} vectors copied")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
arrived = CacheFolder(target).stats().vectors
assert f"only {arrived:,} vectors arrived" in message, (arrived, message)
assert (arrived > 0) is (size > 1_000_000), arrived
open_cache(target).close()  # ends the pause after a failed write
assert CacheFolder(source).copy_to(CacheFolder(target)) == 3000
"""


@POSIX
@pytest.mark.parametrize("size", [1000, 10_000_000], ids=["full", "half full"])
def test_a_copy_to_a_full_disk_is_an_error_with_the_number_that_arrived(tmp_path, size):
    run(FULL_DISK, tmp_path / "source", tmp_path / "target", size)


def test_a_copy_of_a_destroyed_cache_is_an_error(folder, tmp_path):
    for file in (folder / OWN_FOLDER).iterdir():
        file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(CacheError, match=r"was quarantined\. Only 0 vectors could be copied"):
        CacheFolder(folder).copy_to(CacheFolder(tmp_path / "copy"))


# Keys of others


@pytest.fixture
def foreign(folder):
    """The cache with rows of others, whose keys are not 32 bytes."""
    for value in (900_000_000, -5, 1.5, None, "text" * 8, b"short", b"x" * 33, ""):
        sql(
            folder,
            "INSERT INTO Cache (key, raw, access_time, mode, value) VALUES (?, 1, 1.0, 1, zeroblob(44))",
            value,
        )
    return folder


def test_keys_of_others_are_not_counted_verified_or_copied(foreign, tmp_path):
    kept = CacheFolder(foreign)
    assert kept.stats().vectors == 6
    verified = kept.verify()
    assert (verified.vectors, verified.damaged, verified.quarantined) == (6, 0, False)
    assert kept.copy_to(CacheFolder(tmp_path / "copy")) == 6
    assert CacheFolder(tmp_path / "copy").copy_to(kept) == 6
    assert spaces(tmp_path / "copy") == {A: 3, B: 2, None: 1}


def test_damaged_vectors_are_counted_and_not_copied(folder, tmp_path):
    sql(folder, "UPDATE Cache SET value = zeroblob(44) WHERE key = ?", key(1))
    sql(folder, "UPDATE Cache SET value = 'text' WHERE key = ?", key(2))
    assert CacheFolder(folder).verify().damaged == 2
    assert CacheFolder(folder).copy_to(CacheFolder(tmp_path / "copy")) == 4


# Deletion


def test_the_vectors_of_a_model_are_deleted_and_no_others(folder):
    assert CacheFolder(folder).clear(model="openai:a") == 3
    assert spaces(folder) == {B: 2, None: 1}
    assert DiskCache(folder).get_many([key(n) for n in range(6)]).keys() == {key(3), key(4), key(5)}
    assert sql(folder, "SELECT value FROM Settings WHERE key = 'count'") == [(3,)]


def test_all_vectors_are_deleted(folder):
    assert CacheFolder(folder).clear() == 6
    assert CacheFolder(folder).stats().vectors == 0
    assert list((folder / OWN_FOLDER).iterdir()) == []


def age(folder, days, numbers):
    """Set the last recorded use of vectors to some days ago."""
    for number in numbers:
        sql(folder, "UPDATE Cache SET access_time = ? WHERE key = ?", time.time() - days * DAY, key(number))


def test_vectors_that_were_certainly_not_used_for_the_time_are_deleted(folder):
    age(folder, 121, [0, 3])
    age(folder, 119, [1])
    assert CacheFolder(folder).prune(unused_days=90) == 2
    assert DiskCache(folder).get_many([key(n) for n in range(6)]).keys() == {key(n) for n in (1, 2, 4, 5)}
    assert CacheFolder(folder).prune(unused_days=90) == 0


def test_a_vector_that_was_used_within_the_time_is_never_deleted(folder):
    """It was read when its recorded use was 29 days old, so no newer one was recorded."""
    age(folder, 29, range(6))
    cache = DiskCache(folder)
    cache.get_many([key(n) for n in range(6)])
    cache.close()
    sql(folder, "UPDATE Cache SET access_time = access_time - ?", 20 * DAY)  # 20 days later
    assert CacheFolder(folder).prune(unused_days=21) == 0


def test_the_least_recently_used_vectors_are_deleted_until_the_size_fits(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many([(key(n), Entry(np.full(1024, n, np.float32))) for n in range(2000)])
    cache.close()
    order = [n * 7919 % 2000 for n in range(2000)]
    with contextlib.closing(sqlite3.connect(tmp_path / OWN_FOLDER / DATABASE)) as connection:
        connection.executemany(
            "UPDATE Cache SET access_time = ? WHERE key = ?", [(1e6 + n, key(k)) for n, k in enumerate(order)]
        )
        connection.commit()
    kept, size = CacheFolder(tmp_path), 4_000_000
    before = kept.stats()
    deleted = kept.prune(max_bytes=size)
    after = kept.stats()
    assert before.bytes_on_disk > 2 * size
    assert 0.9 * size < after.bytes_on_disk <= size
    assert sum(path.stat().st_size for path in (tmp_path / OWN_FOLDER).iterdir() if path.suffix != ".db-shm") <= size
    assert deleted + after.vectors == 2000
    left = DiskCache(tmp_path).get_many([key(n) for n in range(2000)])
    assert left.keys() == {key(n) for n in order[deleted:]}
    assert kept.prune(max_bytes=size) == 0


def test_a_size_smaller_than_an_empty_database_deletes_everything(folder):
    assert CacheFolder(folder).prune(max_bytes=1) == 6


def test_prune_without_a_cache_deletes_and_creates_nothing(tmp_path):
    assert CacheFolder(tmp_path / "none").prune(unused_days=1, max_bytes=1) == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("limits", [{}, {"unused_days": 0}, {"max_bytes": -1}, {"unused_days": float("nan")}])
def test_an_invalid_limit_is_refused(folder, limits):
    with pytest.raises(ConfigurationError, match=r"\(got "):
        CacheFolder(folder).prune(**limits)


def test_a_database_that_another_process_has_locked_is_an_error_with_the_number(folder, monkeypatch):
    monkeypatch.setattr("embedkit_core.cache.disk.records.BULK_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("embedkit_core.cache.disk.connections.READ_WAIT_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(folder / OWN_FOLDER / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheError, match=r"cannot be changed \(database is locked\)\. 0 vectors of 3 were deleted"):
            CacheFolder(folder).clear(model="openai:a")
    assert spaces(folder) == {A: 3, B: 2, None: 1}


# Last use


def used_days_ago(folder, number):
    ((used_at,),) = sql(folder, "SELECT access_time FROM Cache WHERE key = ?", key(number))
    return round((time.time() - used_at) / DAY)


def test_the_use_of_a_vector_is_recorded_once_it_is_over_30_days_old(folder):
    age(folder, 31, [0, 1])
    age(folder, 29, [2])
    cache = DiskCache(folder)
    cache.get_many([key(0)])
    cache.get_many([key(0), key(2), key(3)])
    assert [used_days_ago(folder, n) for n in (0, 1, 2, 3)] == [0, 31, 29, 0]


def test_the_use_of_many_vectors_is_recorded(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(1500)))
    sql(tmp_path, "UPDATE Cache SET access_time = 5.0")
    cache.get_many([key(n) for n in range(1200)])
    assert sql(tmp_path, "SELECT count(*) FROM Cache WHERE access_time = 5.0") == [(300,)]


def test_maintenance_is_no_use(folder, tmp_path):
    age(folder, 31, range(6))
    kept = CacheFolder(folder)
    kept.verify()
    kept.copy_to(CacheFolder(tmp_path / "copy"))
    kept._cache.close()
    assert {used_days_ago(folder, n) for n in range(6)} == {31}


def test_a_locked_database_keeps_the_recorded_use(folder):
    age(folder, 31, [0])
    cache = DiskCache(folder)
    with contextlib.closing(sqlite3.connect(folder / OWN_FOLDER / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert cache.get_many([key(0)])
    assert used_days_ago(folder, 0) == 31
    assert cache.get_many([key(0)])
    assert used_days_ago(folder, 0) == 0


def test_a_read_waits_a_moment_for_a_writer_to_record_the_use(folder, monkeypatch):
    age(folder, 31, [0])
    monkeypatch.setattr(connections, "_RENEW_WAIT_SECONDS", 60.0)
    set_busy_timeout = connections.set_busy_timeout
    other = sqlite3.connect(folder / OWN_FOLDER / DATABASE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    end = threading.Thread(target=other.close)

    def ending(connection, seconds):
        set_busy_timeout(connection, seconds)
        if seconds == 60.0:
            end.start()

    monkeypatch.setattr(connections, "set_busy_timeout", ending)
    assert DiskCache(folder).get_many([key(0)])
    end.join()
    assert used_days_ago(folder, 0) == 0


KILLED = """
import os, sys
from embedkit_core.cache import open_cache
cache = open_cache(sys.argv[1])
assert cache.get_many([bytes(32)])
os._exit(0)
"""


def test_the_use_is_recorded_although_the_process_is_killed(folder):
    """The worker processes of multiprocessing end without closing anything, and so does one that gets SIGTERM."""
    age(folder, 31, [0])
    run(KILLED, folder)
    assert used_days_ago(folder, 0) == 0


READ_ONLY = f"""{READ_ONLY_COPY}
copy = read_only_copy(*sys.argv[1:])
before = (copy / "embedkit-v1" / "cache.db").read_bytes()
cache = open_cache(copy)
assert cache.get_many([bytes(32)])
cache.close()
assert (copy / "embedkit-v1" / "cache.db").read_bytes() == before
"""


@POSIX
@pytest.mark.parametrize("mode", ["500", "700"], ids=["folder", "file"])
def test_nothing_is_recorded_in_a_read_only_folder(folder, mode):
    age(folder, 31, [0])
    run(READ_ONLY, folder, mode)


def test_a_hit_rarely_causes_a_write():
    assert RENEW_AFTER_SECONDS == 30 * DAY
