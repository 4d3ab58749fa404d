"""A tampered, damaged, full or read-only cache folder costs vectors, never a wrong vector, a file or a crash."""

import contextlib
import logging
import os
import pickle
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path

import diskcache
import numpy as np
import pytest
from support.embedders import fake_embedder
from test_disk_cache import POSIX, assert_holds, encode, entries, key, run

from embedkit_core import ConfigurationError
from embedkit_core.cache import RawDisk
from embedkit_core.cache.disk import cache as disk
from embedkit_core.cache.disk import folder as folders
from embedkit_core.cache.disk import pool as connections
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.disk.create import PAGE_BYTES
from embedkit_core.cache.disk.schema import SCHEMA, SETTINGS, schema_mismatch
from embedkit_core.common.types import Entry
from embedkit_core.testing import FakeServer


@pytest.fixture
def folder(tmp_path):
    """A closed cache with vectors 0 to 9."""
    cache = DiskCache(tmp_path / "cache")
    cache.set_many(entries(range(10)))
    cache.close()
    return tmp_path / "cache"


def cache_folder(folder):
    return folder / "embedkit-v1"


def sql(folder, statement, *values):
    """Change the database through a separate connection."""
    with contextlib.closing(sqlite3.connect(cache_folder(folder) / "cache.db", isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def quarantined(folder):
    return list(folder.glob("embedkit-v1.set-aside-*"))


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def assert_recreated(folder, caplog):
    """The database was quarantined with its content and one warning, and a new one works."""
    cache = DiskCache(folder)
    assert cache.get_many([key(n) for n in range(10)]) == {}
    cache.set_many(entries([1]))
    assert_holds(cache, [1])
    assert cache.stats.write_failures == 0
    (old,) = quarantined(folder)
    (message,) = warnings_in(caplog)
    assert f"quarantined as {old.name} and recreated" in message


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# Rows


def flipped(blob, at):
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: flipped(blob, len(blob) - 1),
        lambda blob: flipped(blob, 5),
        lambda blob: blob[:-1],
        lambda blob: blob[:7],
        lambda blob: b"",
        lambda blob: blob + blob,
        lambda blob: encode(key(4), Entry(np.ones(8, np.float32))),
    ],
    ids=["number", "length", "cut", "stump", "nothing", "twice", "of another key"],
)
def test_a_damaged_value_is_a_counted_miss_and_is_replaced(folder, damage):
    ((blob,),) = sql(folder, "SELECT value FROM Cache WHERE key = ?", key(3))
    sql(folder, "UPDATE Cache SET value = ? WHERE key = ?", damage(blob), key(3))
    cache = DiskCache(folder)
    assert cache.get_many([key(n) for n in range(10)]).keys() == {key(n) for n in range(10) if n != 3}
    assert cache.stats.damaged == 1
    cache.set_many(entries([3]))
    assert_holds(cache, range(10))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_a_miss_even_with_a_valid_checksum(folder, number):
    fields, numbers = struct.pack("<2sBBI", b"EK", 1, 0, 2), struct.pack("<2f", 1, number)
    checksum = struct.pack("<I", zlib.crc32(fields + numbers + key(3)))
    sql(folder, "UPDATE Cache SET value = ? WHERE key = ?", fields + checksum + numbers, key(3))
    assert DiskCache(folder).get_many([key(3)]) == {}


def not_finite(name, blob):
    fields, numbers = blob[:8], struct.pack("<8f", *[1.0] * 7, np.inf)
    return fields + struct.pack("<I", zlib.crc32(fields + numbers + name)) + numbers


def test_a_bulk_read_finds_every_kind_of_damage_and_returns_all_valid_rows(tmp_path):
    """Several blocks, with each kind of damage in each block, and a valid row of another width."""
    cache = DiskCache(tmp_path)
    cache.set_many([*entries(range(1200)), *entries([1200], dimensions=4)])
    cache.close()
    kinds = [
        lambda name, blob: flipped(blob, len(blob) - 1),
        lambda name, blob: flipped(blob, 3),
        lambda name, blob: blob[:-4],
        lambda name, blob: encode(key(4), Entry(np.ones(8, np.float32))),
        not_finite,
    ]
    damaged = {start + n for start in (0, 500, 1000) for n in range(len(kinds))}
    for number in damaged:
        ((blob,),) = sql(tmp_path, "SELECT value FROM Cache WHERE key = ?", key(number))
        damaged_value = kinds[number % 10](key(number), blob)
        sql(tmp_path, "UPDATE Cache SET value = ? WHERE key = ?", damaged_value, key(number))
    cache = DiskCache(tmp_path)
    keys = [key(number) for number in reversed(range(1201))]
    blocks = list(cache.get_blocks(keys))
    assert max(map(len, blocks)) <= connections.KEYS_PER_SELECT
    found = {name: entry for block in blocks for name, entry in block.items()}
    assert found.keys() == {key(number) for number in range(1201)} - {key(number) for number in damaged}
    assert all(np.array_equal(found[name].vector, entry.vector) for name, entry in entries([100, 600, 1199]))
    assert len(found[key(1200)].vector) == 4
    assert cache.stats.damaged == len(damaged)
    assert cache.get_many(keys).keys() == found.keys()


@pytest.mark.filterwarnings("error")
def test_large_finite_numbers_are_stored_without_a_warning(tmp_path):
    cache = DiskCache(tmp_path)
    large = Entry(np.full(8, 3e38, np.float32))
    cache.set_many([(key(1), large)])
    assert np.array_equal(cache.get_many([key(1)])[key(1)].vector, large.vector)


def test_a_failed_read_is_not_repeated_for_every_block(folder, caplog, monkeypatch):
    """Each attempt may wait for seconds, as for a database that another process has locked."""
    cache = DiskCache(folder)
    tries = []

    def fail(self, keys):
        tries.append(len(keys))
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(connections.Pool, "read", fail)
    assert cache.get_many([key(n) for n in range(2000)]) == {}
    assert tries == [connections.KEYS_PER_SELECT]


@pytest.mark.parametrize("value", [7, 1.5, "text", None, b"\xff\xfe not text"])
def test_a_value_of_another_type_is_a_miss_and_is_replaced(folder, value):
    cast = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
    sql(folder, f"UPDATE Cache SET value = {cast} WHERE key = ?", value, key(3))
    cache = DiskCache(folder)
    assert cache.get_many([key(n) for n in range(10)]).keys() == {key(n) for n in range(10) if n != 3}
    cache.set_many(entries([3]))
    assert_holds(cache, range(10))


def test_a_huge_value_is_not_read(folder):
    sql(folder, "UPDATE Cache SET value = zeroblob(5000000) WHERE key = ?", key(3))
    cache = DiskCache(folder)
    assert len(cache.get_many([key(n) for n in range(10)])) == 9
    assert cache.stats.damaged == 0


@pytest.mark.parametrize("api", ["ours", "diskcache"])
def test_a_pickle_is_never_loaded(folder, tmp_path, api):
    marker = tmp_path / "executed"
    bomb = pickle.dumps(Bomb(marker))
    assert not marker.exists()
    (cache_folder(folder) / "bomb.val").write_bytes(bomb)
    sql(folder, "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", bomb, key(1))
    sql(folder, "UPDATE Cache SET mode = 4, value = NULL, filename = 'bomb.val' WHERE key = ?", key(2))
    sql(folder, "INSERT INTO Cache (key, raw, mode, value) VALUES (?, 0, 1, ?)", bomb, bomb)
    if api == "ours":
        assert DiskCache(folder).get_many([key(1), key(2), bomb]) == {}
    else:
        with diskcache.Cache(str(cache_folder(folder)), disk=RawDisk, **SETTINGS) as cache:
            assert [cache.get(key(1)), cache.get(key(2)), cache.get(bomb)] == [None, None, None]
    assert not marker.exists()


@pytest.mark.parametrize("api", ["ours", "diskcache"])
def test_a_file_named_by_a_row_is_neither_read_nor_deleted(folder, tmp_path, api):
    good = encode(key(1), Entry(np.ones(8, np.float32)))
    outside, inside = tmp_path / "precious", cache_folder(folder) / "x.val"
    for path in (outside, inside):
        path.write_bytes(good)
    sql(folder, "UPDATE Cache SET mode = 2, value = NULL, filename = ? WHERE key = ?", str(outside), key(1))
    sql(folder, "UPDATE Cache SET mode = 2, value = NULL, filename = 'x.val' WHERE key = ?", key(2))
    sql(folder, "UPDATE Cache SET filename = ? WHERE key = ?", str(outside), key(3))
    if api == "ours":
        cache = DiskCache(folder)
        assert cache.get_many([key(1), key(2), key(3)]) == {}
        cache.set_many(entries([1, 2, 3]))
        assert_holds(cache, range(10))
    else:
        with diskcache.Cache(str(cache_folder(folder)), disk=RawDisk, **SETTINGS) as raw:
            assert [raw.get(key(1)), raw.get(key(2)), raw.get(key(3))] == [None, None, None]
            raw.set(key(1), b"v")
            del raw[key(2)], raw[key(3)]
    assert outside.read_bytes() == inside.read_bytes() == good


def test_the_disk_class_accepts_bytes_only(folder):
    with diskcache.Cache(str(cache_folder(folder)), disk=RawDisk, **SETTINGS) as raw:
        raw[b"k"] = b"v"
        assert raw[b"k"] == b"v"
        for bad in ("text", 1, None, [b"x"]):
            with pytest.raises(TypeError):
                raw[bad] = b"v"
            with pytest.raises(TypeError):
                raw[b"k"] = bad
        assert b"k" in list(raw)


def test_an_expiry_time_written_by_others_hides_nothing(folder):
    sql(folder, "UPDATE Cache SET expire_time = 1, tag = 'x', access_count = 'x', store_time = 'x'")
    assert_holds(DiskCache(folder), range(10))


# Databases


def test_a_new_database_has_exactly_the_schema_that_is_checked(folder):
    with contextlib.closing(sqlite3.connect(cache_folder(folder) / "cache.db")) as connection:
        assert schema_mismatch(connection) is None
        assert set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")) == SCHEMA
        assert connection.execute("PRAGMA page_size").fetchone() == (PAGE_BYTES,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TRIGGER t AFTER UPDATE ON Cache BEGIN DELETE FROM Cache; END",
        "DROP TRIGGER Settings_count_insert;"
        "CREATE TRIGGER Settings_count_insert AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE VIEW v AS SELECT * FROM Cache",
        "CREATE TABLE Other (x)",
        "CREATE VIRTUAL TABLE f USING fts4(x)",
        "CREATE INDEX Cache_store_time ON Cache (store_time)",
        "DROP INDEX Cache_expire_time",
        "ALTER TABLE Cache ADD COLUMN other",
        "INSERT INTO Settings VALUES ('sqlite_user_version; ATTACH ''/tmp/x'' AS y; --', 1)",
        "INSERT INTO Settings VALUES ('disk_pickle', 1)",
        "INSERT INTO Settings VALUES ('_directory', '/somewhere/else')",
        "UPDATE Settings SET value = 'wal; ATTACH' WHERE key = 'sqlite_journal_mode'",
        "UPDATE Settings SET value = 1 WHERE key = 'sqlite_mmap_size'",
        "UPDATE Settings SET value = 0.0 WHERE key = 'cull_limit'",
        "UPDATE Settings SET value = 'x' WHERE key = 'count'",
        "UPDATE Settings SET value = CAST(x'ff' AS TEXT) WHERE key = 'eviction_policy'",
        "DELETE FROM Settings WHERE key = 'size_limit'",
    ],
)
def test_a_database_with_a_changed_schema_is_quarantined(folder, caplog, script):
    with contextlib.closing(sqlite3.connect(cache_folder(folder) / "cache.db")) as connection:
        connection.executescript(script)
    assert_recreated(folder, caplog)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_database_is_quarantined(folder, caplog, content):
    (cache_folder(folder) / "cache.db").write_bytes(content)
    assert_recreated(folder, caplog)


@POSIX
@pytest.mark.parametrize("name", ["cache.db", "cache.db-wal", "cache.db-shm"])
def test_a_symbolic_link_in_place_of_a_file_is_not_followed(folder, tmp_path, caplog, name):
    target = tmp_path / "elsewhere"
    shutil.copy(cache_folder(folder) / "cache.db", target)
    before = target.read_bytes()
    (cache_folder(folder) / name).unlink(missing_ok=True)
    (cache_folder(folder) / name).symlink_to(target)
    assert_recreated(folder, caplog)
    assert target.read_bytes() == before


def test_a_rollback_journal_is_never_replayed(folder, tmp_path, caplog):
    # The name of a super-journal at its end makes SQLite delete that file. Format: sqlite.org/fileformat2.html
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")
    name = os.fsencode(precious)
    total = sum(name).to_bytes(4, "big")
    magic = bytes.fromhex("d9d505f920a163d7")
    pages = ((cache_folder(folder) / "cache.db").stat().st_size // PAGE_BYTES).to_bytes(4, "big")
    header = magic + bytes(4) + bytes(4) + pages + (512).to_bytes(4, "big") + PAGE_BYTES.to_bytes(4, "big")
    tail = (0x40000000 // PAGE_BYTES + 1).to_bytes(4, "big") + name + len(name).to_bytes(4, "big") + total + magic
    (cache_folder(folder) / "cache.db-journal").write_bytes(header.ljust(512, b"\0") + tail)
    assert_recreated(folder, caplog)
    assert precious.exists()


@pytest.mark.parametrize("first", ["read", "written"])
def test_a_database_damaged_while_it_is_open_is_quarantined(folder, caplog, first):
    cache = DiskCache(folder)
    cache.set_many(entries(range(2000), dimensions=256))
    cache.close()
    assert_holds(cache, range(10))
    with (cache_folder(folder) / "cache.db").open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(os.urandom((cache_folder(folder) / "cache.db").stat().st_size - PAGE_BYTES))
    if first == "read":
        cache.get_many([key(n) for n in range(2000)])
    cache.set_many(entries(range(2000)))
    assert_holds(cache, range(2000))
    assert cache.stats.write_failures == 0
    assert len(quarantined(folder)) == 1
    assert len(warnings_in(caplog)) == 1


def test_after_three_quarantines_the_cache_is_disabled(folder, caplog):
    cache = DiskCache(folder)
    for _ in range(10):
        (cache_folder(folder) / "cache.db").write_bytes(b"x" * 100)
        cache.set_many(entries([1]))
        if cache._pool is not None:
            cache._pool.close()
            cache._pool = None
    assert len(quarantined(folder)) == 3
    assert cache.stats.write_failures > 0
    assert len(warnings_in(caplog)) == 4


def test_a_folder_quarantined_by_another_process_is_not_quarantined_again(folder):
    seen = folders.identity(cache_folder(folder))
    assert folders.quarantine(cache_folder(folder), seen)
    DiskCache(folder).set_many(entries([1]))
    assert not folders.quarantine(cache_folder(folder), seen)
    assert_holds(DiskCache(folder), [1])


# Folders


@POSIX
def test_a_new_folder_is_private_to_the_user(tmp_path):
    old = os.umask(0)
    try:
        cache = DiskCache(tmp_path / "deep" / "cache")
        cache.set_many(entries([1]))
    finally:
        os.umask(old)
    assert (tmp_path / "deep" / "cache").stat().st_mode & 0o777 == 0o700
    assert cache_folder(tmp_path / "deep" / "cache").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache_folder(tmp_path / "deep" / "cache").iterdir()} == {0o600}


@POSIX
def test_permissions_of_the_cache_folder_are_tightened_and_its_parent_is_unchanged(folder):
    folder.chmod(0o755)
    cache_folder(folder).chmod(0o777)
    assert_holds(DiskCache(folder), range(10))
    assert cache_folder(folder).stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o755


def assert_works_without(cache, caplog, reason):
    cache.set_many(entries([1]))
    cache.set_many(entries([2]))
    assert cache.get_many([key(n) for n in range(10)]) == {}
    assert cache.stats.write_failures == 2
    (message,) = warnings_in(caplog)
    assert "is off, so texts are embedded again" in message
    assert reason in message


@POSIX
def test_a_symbolic_link_to_a_folder_is_not_used(folder, caplog):
    elsewhere = folder.parent / "elsewhere"
    cache_folder(folder).rename(elsewhere)
    cache_folder(folder).symlink_to(elsewhere)
    before = (elsewhere / "cache.db").read_bytes()
    assert_works_without(DiskCache(folder), caplog, "link")
    assert (elsewhere / "cache.db").read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(folder, caplog):
    os.chown(cache_folder(folder), 65534, 65534)
    assert_works_without(DiskCache(folder), caplog, "another user")


def test_a_network_file_system_is_not_used(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(folders, "network_of", lambda path: "nfs4")  # no test can mount one
    assert_works_without(DiskCache(tmp_path / "x"), caplog, "network file system (nfs4)")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("where", ["a file", "under a file"])
def test_a_cache_path_that_is_a_file_is_refused_at_once(tmp_path, where):
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is a file"):
        fake_embedder(FakeServer(), cache=file if where == "a file" else file / "cache")
    assert file.read_text(encoding="utf-8") == "mine"


# Disks


FULL_DISK = """
import logging, os, resource, sys, tempfile
import numpy as np
from embedkit_core.cache import open_cache
from embedkit_core.cache.disk import cache as disk
from embedkit_core.common.types import Entry
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger("embedkit_core").addHandler(handler)
def entry(n): return (n.to_bytes(32, "little"), Entry(np.full(1536, n, "f4")))
cache = open_cache(sys.argv[1])
cache.set_many([entry(n) for n in range(100)])
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
for start in range(100, 1100, 100):
    cache.set_many([entry(n) for n in range(start, start + 100)])
assert cache.stats.write_failures > 0, "nothing failed"
assert len(records) == 1, records
assert "cannot be written" in records[0].getMessage()
assert len(cache.get_many([entry(n)[0] for n in range(100)])) == 100
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
failures = cache.stats.write_failures
cache.set_many([entry(0)])
assert cache.stats.write_failures == failures + 1, "writing pauses after a failure"
cache.close()
cache.set_many([entry(n) for n in range(1100)])
assert cache.stats.write_failures == failures + 1
assert len(cache.get_many([entry(n)[0] for n in range(1100)])) == 1100
assert len(records) == 1
"""


PARTIAL_CREATION = """
import os, resource, sys
import numpy as np
from embedkit_core.cache import open_cache
from embedkit_core.cache.disk import create
from embedkit_core.common.types import Entry
entry = (b"k" * 32, Entry(np.ones(8, "f4")))
cache = open_cache(sys.argv[1])
for size in range(10_000, 150_000, 10_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    cache.set_many([entry])
    assert cache.stats.write_failures == size // 10_000
    assert os.listdir(sys.argv[1]) == []
    cache.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
cache.set_many([entry])
assert os.listdir(sys.argv[1]) == ["embedkit-v1"]
assert len(cache.get_many([entry[0]])) == 1
"""


@POSIX
def test_a_database_is_created_completely_or_not_at_all(tmp_path):
    run(PARTIAL_CREATION, tmp_path)


@POSIX
def test_a_full_disk_stops_writes_with_one_warning_and_reads_continue(tmp_path):
    run(FULL_DISK, tmp_path)


READ_ONLY = """
import logging, os, sys, tempfile
from pathlib import Path
import numpy as np
from embedkit_core.cache import open_cache
from embedkit_core.cache.disk import cache as disk, create  # before root drops the permission to read them
from embedkit_core.common.types import Entry
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)  # root may write anywhere
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger("embedkit_core").addHandler(handler)
entry = (b"k" * 32, Entry(np.ones(8, "f4")))
with tempfile.TemporaryDirectory() as folder:
    own = Path(folder, "embedkit-v1")
    cache = open_cache(folder)
    if sys.argv[1] == "left by a crash":  # the vector is in the WAL alone
        if (child := os.fork()) == 0:
            cache.set_many([entry])
            os._exit(0)
        os.waitpid(child, 0)
        assert Path(own, "cache.db-wal").stat().st_size
    else:
        cache.set_many([entry])
        cache.close()
    (own / "cache.db").chmod(0o400)
    own.chmod(0o500)
    try:
        assert len(cache.get_many([entry[0]])) == 1
        assert not records
        cache.set_many([(b"j" * 32, entry[1])])
        cache.set_many([(b"j" * 32, entry[1])])
        assert cache.stats.write_failures == 2
        assert len(records) == 1, records
        assert len(cache.get_many([entry[0], b"j" * 32])) == 1
    finally:
        own.chmod(0o700)
        (own / "cache.db").chmod(0o600)
    cache.close()
    cache.set_many([(b"j" * 32, entry[1])])
    assert len(cache.get_many([entry[0], b"j" * 32])) == 2
    cache.close()
"""


@POSIX
@pytest.mark.parametrize("state", ["closed", "left by a crash"])
def test_a_read_only_folder_serves_its_entries(state):
    run(READ_ONLY, state)


@POSIX
def test_a_folder_that_cannot_be_created_causes_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    cache = DiskCache(tmp_path / "file" / "cache")
    cache.set_many(entries([1]))
    assert cache.get_many([key(1)]) == {}
    assert cache.stats.write_failures == 1
    assert len(warnings_in(caplog)) == 1


def test_a_locked_database_loses_the_write_and_not_the_reads(folder, caplog, monkeypatch):
    monkeypatch.setattr(disk, "WRITE_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("embedkit_core.cache.disk.connections.READ_WAIT_SECONDS", 0.05)
    cache = DiskCache(folder)
    with contextlib.closing(sqlite3.connect(cache_folder(folder) / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cache.set_many(entries([50]))
        assert_holds(cache, range(10))
        cache.close()
        cache.set_many(entries([50]))
        assert_holds(cache, range(10))
        assert cache.stats.write_failures == 2
    (message,) = warnings_in(caplog)
    assert "locked" in message
    cache.set_many(entries([50]))  # as soon as the lock is open
    assert_holds(cache, [50])


def test_no_warning_contains_a_key_or_a_number(folder, caplog):
    (cache_folder(folder) / "cache.db").write_bytes(b"x")
    cache = DiskCache(folder)
    cache.set_many([(b"sk-secret-key-of-32-bytes-length", Entry(np.full(4, 1234.5, np.float32)))])
    assert warnings_in(caplog)
    assert "secret" not in caplog.text
    assert "1234" not in caplog.text


@POSIX
def test_a_child_forked_during_a_stuck_write_works_without_the_cache(folder):
    script = """
import os, sqlite3, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
from embedkit_core.cache import open_cache
from embedkit_core.cache.disk import pool as connections
from embedkit_core.common.types import Entry
entry = (b"k" * 32, Entry(np.ones(8, "f4")))
cache = open_cache(sys.argv[1])
cache.get_many([entry[0]])
other = sqlite3.connect(sys.argv[1] + "/embedkit-v1/cache.db", isolation_level=None, check_same_thread=False)
other.execute("BEGIN IMMEDIATE")
begun = threading.Event()
execute = connections.execute_patiently
connections.execute_patiently = lambda *arguments: (begun.set(), execute(*arguments))
writer = threading.Thread(target=cache.set_many, args=([entry],))
writer.start()
begun.wait()
child = os.fork()
if child == 0:
    found = cache.get_many([entry[0]])
    cache.set_many([entry])
    sys.exit(0 if not found and cache.stats.write_failures == 1 else 1)
status = os.waitpid(child, 0)[1]
other.execute("ROLLBACK")
writer.join()
assert status == 0
assert len(cache.get_many([entry[0]])) == 1
assert cache.stats.write_failures == 0
cache.close()
"""
    run(script, folder)
