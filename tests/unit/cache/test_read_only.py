"""Every vector of a read-only copy is read, also those in the write-ahead log alone."""

import pytest
from support.read_only import READ_ONLY_COPY
from test_disk_cache import POSIX, entries, run

from embedkit_core.cache.disk.cache import DiskCache

LEFT_BY_A_CRASH = """
import os, sys
import numpy as np
from embedkit_core.cache import Entry, open_cache
cache = open_cache(sys.argv[1])
cache.set_many([(n.to_bytes(32, "little"), Entry(np.full(8, n, "f4"))) for n in range(10, 20)])
os._exit(0)
"""

READ = f"""{READ_ONLY_COPY}
import logging, threading
from embedkit_core.cache import CacheFolder
copy = read_only_copy(sys.argv[1], "500")
own = copy / "embedkit-v1"
before = {{path.name: path.read_bytes() for path in own.iterdir()}}
records = []
handler = logging.Handler()
handler.emit = records.append
logging.getLogger("embedkit_core").addHandler(handler)
keys = [n.to_bytes(32, "little") for n in range(int(sys.argv[2]))]
cache = open_cache(copy)

def check():
    found = cache.get_many(keys)
    assert found.keys() == set(keys), len(found)
    assert all((found[key].vector == n).all() for n, key in enumerate(keys))

threads = [threading.Thread(target=check) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
check()
stats = CacheFolder(copy).verify()
assert (stats.vectors, stats.damaged, stats.quarantined) == (len(keys), 0, False)
assert not records, records
cache.set_many([(bytes(32), Entry(np.ones(8, "f4")))])
assert cache.stats.write_failures == len(records) == 1
check()
cache.close()
check()
cache.close()
assert {{path.name: path.read_bytes() for path in own.iterdir()}} == before
"""


@POSIX
@pytest.mark.parametrize("shm", [True, False], ids=["with its index", "without its index"])
def test_vectors_in_the_log_alone_are_read(tmp_path, shm):
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(10)))
    cache.close()
    run(LEFT_BY_A_CRASH, tmp_path)
    own = tmp_path / "embedkit-v1"
    assert (own / "cache.db-wal").stat().st_size > 0
    if not shm:
        (own / "cache.db-shm").unlink()
    run(READ, tmp_path, 20)


@POSIX
def test_an_empty_log_is_no_obstacle(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(10)))
    cache.close()
    (tmp_path / "embedkit-v1" / "cache.db-wal").touch()
    run(READ, tmp_path, 10)


@POSIX
def test_a_closed_cache_has_no_log(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(10)))
    cache.close()
    run(READ, tmp_path, 10)


CLOSED = f"""{READ_ONLY_COPY}
from embedkit_core import CacheError
from embedkit_core.cache import CacheFolder
copy = read_only_copy(sys.argv[1], "000")
closed = CacheFolder(copy)
for operation in (closed.stats, closed.verify, lambda: closed.copy_to(CacheFolder("x"))):
    try:
        print(operation())
    except (CacheError, PermissionError):
        continue
    raise AssertionError(operation)
assert open_cache(copy).get_many([bytes(32)]) == {{}}
"""


@POSIX
def test_a_folder_that_cannot_be_opened_is_not_an_empty_cache(tmp_path):
    cache = DiskCache(tmp_path)
    cache.set_many(entries(range(10)))
    cache.close()
    run(CLOSED, tmp_path)
