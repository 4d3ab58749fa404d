"""The disk cache keeps every vector, for threads, processes and forks."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.rows import check_rows

import embedkit_core
from embedkit_core.cache import Cache, CacheFolder
from embedkit_core.cache.codec import decode_all, encode_all
from embedkit_core.cache.disk.cache import DiskCache
from embedkit_core.cache.disk.folder import network_filesystem
from embedkit_core.cache.memory import MemoryTier
from embedkit_core.cache.opening import open_cache
from embedkit_core.common.types import Entry

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(embedkit_core.__file__).parents[1])}
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")

vectors = hnp.arrays(
    np.float32, st.integers(1, 300), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


def key(number):
    return number.to_bytes(32, "little")


def encode(name, entry):
    return encode_all([(name, entry)])[0][1]


def decode(name, value):
    return decode_all([(name, value)]).get(name)


def entries(numbers, dimensions=8):
    return [(key(n), Entry(np.full(dimensions, n, np.float32), n % 2 == 1)) for n in numbers]


def assert_holds(cache, numbers):
    """Check that the cache holds all of the numbers, each with its vector and flag."""
    numbers = list(numbers)
    found = cache.get_many([key(n) for n in numbers])
    assert found.keys() == {key(n) for n in numbers}
    assert all((found[key(n)].vector == n).all() and found[key(n)].truncated is (n % 2 == 1) for n in numbers)


def files(folder):
    return sorted(path.name for path in (Path(folder) / "embedkit-v1").iterdir())


def command(script, *arguments):
    return [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]


def run(script, *arguments):
    """Run a script in another interpreter and check that it succeeds."""
    done = subprocess.run(command(script, *arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@given(st.binary(max_size=64), vectors, st.booleans())
def test_a_decoded_entry_equals_the_encoded_entry(name, vector, truncated):
    entry = decode(name, encode(name, Entry(vector, truncated)))
    assert entry.vector.dtype == np.float32
    assert entry.vector.tobytes() == vector.tobytes()
    assert entry.truncated is truncated
    assert not entry.vector.flags.writeable


@given(vectors, st.data())
def test_a_change_of_any_byte_is_detected(vector, data):
    blob = bytearray(encode(b"key", Entry(vector)))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    assert decode(b"key", bytes(blob)) is None


@given(vectors, st.data())
def test_a_value_is_valid_only_complete_and_under_its_own_key(vector, data):
    blob = encode(b"key", Entry(vector))
    assert decode(b"another", blob) is None
    assert decode(b"key", blob[: data.draw(st.integers(0, len(blob) - 1))]) is None
    assert decode(b"key", blob + b"\0\0\0\0") is None
    assert decode(b"key", memoryview(blob)) is None


@given(st.one_of(st.binary(max_size=100), st.none(), st.integers(), st.text(), st.floats()))
def test_other_types_decode_to_nothing(value):
    assert decode(b"key", value) is None


def test_a_vector_that_is_no_row_of_finite_numbers_is_refused(tmp_path):
    def check(bad):
        cache = DiskCache(tmp_path)
        with pytest.raises(ValueError, match="finite"):
            cache.set_many([*entries([1]), (key(2), Entry(np.array(bad, np.float32)))])
        assert cache.get_many([key(1), key(2)]) == {}

    check_rows([[], [[1.0]], [np.nan], [np.inf], 1.0], check)


def test_a_value_of_the_first_format_version_is_still_read():
    blob = bytes.fromhex("454b010102000000949e2e880000c03f000000c0")
    entry = decode(b"key", blob)
    assert entry.vector.tolist() == [1.5, -2]
    assert entry.truncated
    assert encode(b"key", entry) == blob


def test_no_file_is_created_and_no_database_module_is_imported_before_the_first_use(tmp_path):
    script = """
import sys
import embedkit_core.cache
assert "sqlite3" not in sys.modules
cache = embedkit_core.cache.opening.open_cache(sys.argv[1])
assert cache.get_many([b"k"]) == {}
"""
    run(script, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_written_entries_are_read_by_another_object_and_after_closing(tmp_path):
    cache = DiskCache(tmp_path)
    assert isinstance(cache, Cache)
    cache.set_many(entries(range(1201)))
    cache.set_many([])
    assert_holds(cache, range(1201))
    assert_holds(DiskCache(tmp_path), range(1201))
    assert cache.get_many([key(5), key(9999), key(5)]).keys() == {key(5)}
    assert cache.get_many([]) == {}
    cache.close()
    assert_holds(cache, range(1201))


def test_the_later_of_two_values_of_a_key_is_kept(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries([1]))
    cache.set_many([(key(1), Entry(np.zeros(3, np.float32)))])
    assert cache.get_many([key(1)])[key(1)].vector.tolist() == [0, 0, 0]


def test_closing_leaves_only_the_database_file(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(10)))
    threads = [threading.Thread(target=assert_holds, args=(cache, range(10))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(tmp_path) == ["cache.db", "cache.db-shm", "cache.db-wal"]
    cache.close()
    assert files(tmp_path) == ["cache.db"]


def test_a_folder_has_one_cache_object_that_closes_with_its_last_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = open_cache(tmp_path / "a")
    assert open_cache("a") is one
    assert open_cache("b") is not one
    one.set_many(entries([1]))
    assert len(files(tmp_path / "a")) == 3
    del one
    gc.collect()
    assert files(tmp_path / "a") == ["cache.db"]


def test_many_threads_use_one_cache_and_leave_no_open_connection(tmp_path):
    cache = DiskCache(tmp_path)

    def work(number):
        mine = range(number * 50, number * 50 + 50)
        cache.set_many(entries(mine))
        assert_holds(cache, mine)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(64)))
    assert_holds(cache, range(64 * 50))
    assert cache.stats.write_failures == 0
    cache.close()
    assert files(tmp_path) == ["cache.db"]


def test_surplus_connections_are_not_kept_open(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries([1]))
    lent = [cache._pool._acquire() for _ in range(20)]
    for connection in lent:
        cache._pool._release(connection)
    assert len(cache._pool._idle) <= 8


def test_a_cache_closed_during_reads_and_writes_loses_nothing(tmp_path):
    cache = DiskCache(tmp_path)
    done = threading.Event()

    def close():
        while not done.is_set():
            cache.close()

    closer = threading.Thread(target=close)
    closer.start()
    try:
        for number in range(100):
            cache.set_many(entries([number]))
            assert_holds(cache, [number])
    finally:
        done.set()
        closer.join()
    assert_holds(cache, range(100))
    cache.close()
    assert files(tmp_path) == ["cache.db"]


WRITE = """
import sys
import numpy as np
from embedkit_core.cache.opening import open_cache
from embedkit_core.common.types import Entry
folder, first, count, size, dimensions = sys.argv[1], *map(int, sys.argv[2:])
cache = open_cache(folder)
print("ready", flush=True)
sys.stdin.readline()
for start in range(first, first + count, size):
    numbers = range(start, start + size)
    cache.set_many([(n.to_bytes(32, "little"), Entry(np.full(dimensions, n, "f4"), n % 2 == 1)) for n in numbers])
    print(start + size, flush=True)
assert cache.stats.write_failures == 0
"""


def writer(*arguments):
    pipe = subprocess.PIPE
    return subprocess.Popen(command(WRITE, *arguments), env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True)


def start_writing(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def test_processes_that_start_and_write_at_once_lose_nothing(tmp_path):
    writers = [writer(tmp_path, first, 2000, 20, 64) for first in range(0, 8000, 2000)]
    for process in writers:
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        start_writing(process)
    for process in writers:
        process.communicate()
        assert process.returncode == 0
    assert_holds(DiskCache(tmp_path), range(8000))
    assert [path.name for path in tmp_path.iterdir()] == ["embedkit-v1"]


@POSIX
def test_a_process_killed_during_writes_keeps_all_commits(tmp_path):
    process = writer(tmp_path, 0, 10**9, 50, 256)
    assert process.stdout.readline() == "ready\n"
    start_writing(process)
    committed = [int(process.stdout.readline()) for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    committed = (committed + [int(number) for number in process.stdout.read().split()])[-1]
    process.communicate()
    cache = DiskCache(tmp_path)
    assert_holds(cache, range(committed))
    later = cache.get_many([key(n) for n in range(committed, committed + 200)])
    assert len(later) in (0, 50), "a commit is there whole or not at all"


FORK = """
import os, sys
import numpy as np
from embedkit_core.cache.opening import open_cache
from embedkit_core.common.types import Entry
def entry(n): return (n.to_bytes(32, "little"), Entry(np.full(8, n, "f4"), n % 2 == 1))
cache = open_cache(sys.argv[1])
cache.set_many([entry(0)])
here, there = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    assert open_cache(sys.argv[1]) is cache
    assert len(cache.get_many([entry(0)[0]])) == 1
    cache.set_many([entry(1)])
    os.write(here[1], b"x")
    os.read(there[0], 1)  # the parent has closed
    cache.set_many([entry(2)])
    assert cache.stats.write_failures == 0
    os._exit(0)  # closing nothing
os.read(here[0], 1)
cache.close()
os.write(there[1], b"x")
assert os.waitpid(child, 0)[1] == 0
cache.set_many([entry(3)])
assert len(cache.get_many([entry(n)[0] for n in range(4)])) == 4
"""


@POSIX
def test_a_forked_child_and_its_parent_share_all_entries(tmp_path):
    run(FORK, tmp_path)
    assert_holds(DiskCache(tmp_path), range(4))


FORK_AMID_READS = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np
from embedkit_core.cache.opening import open_cache
from embedkit_core.common.types import Entry
cache = open_cache(sys.argv[1])
keys = [n.to_bytes(32, "little") for n in range(500)]
cache.set_many([(key, Entry(np.ones(64, "f4"))) for key in keys])
done = threading.Event()
def read():
    while not done.is_set():
        assert len(cache.get_many(keys)) == 500
        cache.set_many([(keys[0], Entry(np.ones(64, "f4")))])
threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads: thread.start()
for number in range(20):
    child = os.fork()
    if child == 0:
        ok = len(cache.get_many(keys)) == 500
        cache.set_many([(bytes([number]) * 32, Entry(np.ones(8, "f4")))])
        cache.close()
        os._exit(0 if ok and cache.stats.write_failures == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0
done.set()
for thread in threads: thread.join()
assert len(cache.get_many([bytes([number]) * 32 for number in range(20)])) == 20
"""


@POSIX
def test_a_process_can_fork_while_its_threads_read_and_write(tmp_path):
    run(FORK_AMID_READS, tmp_path)


def test_200_000_vectors_are_kept_without_eviction(tmp_path):
    cache = DiskCache(tmp_path)
    vector = Entry(np.arange(8, dtype=np.float32))
    for start in range(0, 200_000, 20_000):
        cache.set_many([(key(n), vector) for n in range(start, start + 20_000)])
    assert len(cache.get_many([key(n) for n in range(200_000)])) == 200_000


@POSIX
def test_a_reader_finds_what_was_written_after_the_cache_was_cleared(tmp_path):
    reader, writer = DiskCache(tmp_path), DiskCache(tmp_path)
    reader.set_many(entries(range(10)))
    assert_holds(reader, range(10))
    CacheFolder(tmp_path).clear()
    writer.set_many(entries(range(5, 15)))
    assert_holds(reader, range(5, 15))
    assert not reader.get_many([key(0)])


def test_a_folder_deleted_while_in_use_is_created_again(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries([1]))
    (tmp_path / "embedkit-v1").rename(tmp_path / "gone")
    cache.set_many(entries([2]))
    assert_holds(DiskCache(tmp_path), [2])
    assert cache.stats.write_failures == 0


def test_a_path_with_special_characters_works(tmp_path):
    folder = tmp_path / "ünï ?#%41 &mode=ro"
    DiskCache(folder).set_many(entries([1]))
    assert_holds(DiskCache(folder), [1])


def test_memory_keeps_the_entries_used_last_within_its_limit():
    tier = MemoryTier(max_bytes=10 * (32 + 400 + 4 * 256))
    for name, entry in entries(range(10), dimensions=256):
        tier.put(name, entry)
    assert tier.get(key(0)) is not None
    tier.put(*entries([10], dimensions=256)[0])
    assert tier.get(key(1)) is None
    assert tier.get(key(0)).vector[0] == 0
    tier.put(*entries([11], dimensions=10_000)[0])
    assert tier.get(key(11)) is None
    assert len(tier) == 10


def test_entries_in_memory_cannot_be_changed():
    tier = MemoryTier()
    vector = np.ones(4, np.float32)
    tier.put(b"k", Entry(vector, True))
    vector[:] = 7
    kept, truncated, _ = tier.get(b"k")
    assert kept.tolist() == [1, 1, 1, 1]
    assert truncated
    with pytest.raises(ValueError, match="WRITEABLE"):
        kept.flags.writeable = True


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50))))
def test_memory_never_exceeds_its_limit(puts):
    tier = MemoryTier(max_bytes=3000)
    for number, dimensions in puts:
        tier.put(*entries([number], dimensions)[0])
        held = [tier.get(key(n)) for n in range(21)]
        assert sum(432 + entry.vector.nbytes for entry in held if entry) == tier._bytes <= 3000


MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:20 / /home rw - nfs4 server:/home rw,vers=4.2
24 23 0:21 / /home/me/local rw shared:2 master:1 - xfs /dev/sdb rw
25 22 0:22 / /mnt/my\040share rw - cifs //server/share rw
26 22 0:23 / /mnt/over rw - nfs server:/x rw
27 22 0:24 / /mnt/over rw - tmpfs tmpfs rw
28 22 0:25 / /mnt/ssh rw - fuse.sshfs me@host: rw
nonsense
"""


def test_a_network_file_system_is_recognized_by_the_mount_of_the_path():
    def check(row):
        path, type_ = row
        assert network_filesystem(MOUNTS, path) == type_

    check_rows(
        [
            ("/var/cache/x", None),
            ("/home", "nfs4"),
            ("/home/me/.cache", "nfs4"),
            ("/homes/me", None),
            ("/home/me/local/cache", None),
            ("/mnt/my share/cache", "cifs"),
            ("/mnt/over/cache", None),
            ("/mnt/ssh/a", "fuse.sshfs"),
        ],
        check,
    )


def test_normal_use_logs_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        cache = DiskCache(tmp_path)
        cache.set_many(entries(range(5)))
        assert_holds(cache, range(5))
        cache.close()
    assert not caplog.records
