"""Stores of bytes, and a diskcache.Cache of the user, hold vectors in the built-in format."""

import json
import os
import pickle
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from support.embedders import fake_embedder
from support.openai_client import MODEL

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.cache import BytesCache, ByteStore, Entry, RawDisk
from embedkit_core.cache.codec import encode_all
from embedkit_core.testing import FakeServer

diskcache = pytest.importorskip("diskcache")
KEYS = [bytes([n]) * 32 for n in range(4)]


class DictStore(ByteStore):
    """A store in a dict."""

    def __init__(self):
        self.values = {}
        self.closed = 0

    def mget(self, keys):
        return [self.values.get(key) for key in keys]

    def mset(self, items):
        self.values.update(items)

    def close(self):
        self.closed += 1


def items():
    return [(key, Entry(np.full(8, n, np.float32), n == 1)) for n, key in enumerate(KEYS)]


def assert_hits(cache, keys):
    found = cache.get_many(KEYS)
    assert found.keys() == set(keys)
    for key, expected in items():
        if key in keys:
            assert np.array_equal(found[key].vector, expected.vector)
            assert found[key].truncated is expected.truncated


def test_a_store_holds_the_bytes_that_the_built_in_cache_holds():
    store = DictStore()
    cache = BytesCache(store)
    cache.set_many(items())
    assert store.values == dict(encode_all(items()))
    assert_hits(cache, KEYS)
    cache.close()
    assert store.closed == 1


@pytest.mark.parametrize("value", [b"", b"x" * 44, "text", 7, b"\x80\x04N.", pickle.dumps(np.ones(8))])
def test_a_damaged_or_foreign_value_is_a_miss(value):
    store = DictStore()
    cache = BytesCache(store)
    cache.set_many(items())
    store.values[KEYS[1]] = value
    store.values[KEYS[2]] = store.values[KEYS[3]]
    assert_hits(cache, [KEYS[0], KEYS[3]])


@pytest.mark.parametrize("type_", [bytearray, memoryview])
def test_a_store_may_return_bytes_as_its_driver_does(type_):
    store = DictStore()
    BytesCache(store).set_many(items())
    store.values = {key: type_(value) for key, value in store.values.items()}
    assert_hits(BytesCache(store), KEYS)


def test_nothing_is_stored_if_one_vector_is_invalid():
    store = DictStore()
    with pytest.raises(ValueError, match="finite"):
        BytesCache(store).set_many([*items(), (bytes(32), Entry(np.full(8, np.nan, np.float32)))])
    assert store.values == {}


def test_an_embedder_with_a_store_sends_a_text_once():
    server, cache = FakeServer(), BytesCache(DictStore())
    first, second = (fake_embedder(server, cache=cache).embed(["x", "y"]) for _ in range(2))
    assert np.array_equal(first.vectors, second.vectors)
    assert len(server.received) == 1


# diskcache


def test_vectors_are_kept_in_a_diskcache_with_the_raw_disk(tmp_path):
    server = FakeServer()
    for _ in range(2):
        with diskcache.Cache(str(tmp_path), disk=RawDisk) as cache:
            with fake_embedder(server, cache=cache) as embedder:
                embedder.embed(["x", "y"])
            assert len(cache) == 2, "an embedder does not close a cache of the user"
    assert len(server.received) == 1


def test_a_failed_write_to_a_diskcache_costs_no_vector(tmp_path):
    server = FakeServer()
    with (
        diskcache.Cache(str(tmp_path), disk=RawDisk, timeout=0.01) as cache,
        closing(diskcache.Cache(str(tmp_path), disk=RawDisk)) as other,
        other.transact(),
    ):
        assert fake_embedder(server, cache=cache).embed(["x"]).vectors.shape == (1, 8)
        assert len(cache) == 0


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_diskcache_is_a_miss_and_is_not_loaded(tmp_path):
    server, marker = FakeServer(), tmp_path / "executed"
    with diskcache.Cache(str(tmp_path / "cache")) as planted:
        planted[bytes.fromhex(fake_embedder(server).explain("x").key)] = Bomb(marker)
    with diskcache.Cache(str(tmp_path / "cache"), disk=RawDisk) as cache:
        embedder = fake_embedder(server, cache=cache)
        assert embedder.embed(["x"]).usage.sent == 1
        assert embedder.embed(["x"]).usage.cache_hits == 1
    assert not marker.exists()


def test_an_object_whose_attributes_raise_is_no_cache(tmp_path):
    with (
        closing(diskcache.FanoutCache(tmp_path, disk=RawDisk)) as own,
        pytest.raises(ConfigurationError, match=r"cache: must be .* \(got FanoutCache\)"),
    ):
        Embedder(MODEL, api_key="k", cache=own)


@pytest.mark.parametrize("disk", [diskcache.Disk, diskcache.JSONDisk])
def test_a_diskcache_that_would_unpickle_is_refused_with_the_way_to_make_one(tmp_path, disk):
    with (
        diskcache.Cache(str(tmp_path), disk=disk) as cache,
        pytest.raises(ConfigurationError, match=r"diskcache\.Cache\(folder, disk=embedkit_core\.cache\.RawDisk\)"),
    ):
        Embedder(MODEL, api_key="x", cache=cache)


SCRIPT = """
import json, sys
from embedkit_core import Embedder
from embedkit_core.testing import FakeServer
server = FakeServer()
with Embedder("fake:any", base_url=server.url, cache=sys.argv[1]) as embedder:
    embedder.embed(["x"])
print(json.dumps("diskcache" in sys.modules))
sys.modules["diskcache"] = None
try:
    from embedkit_core.cache import RawDisk
except ImportError as error:
    print(json.dumps([error.extra, str(error)]))
"""


def test_diskcache_is_not_imported_and_its_absence_names_the_extra(tmp_path):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, env=dict(os.environ))
    assert (run.returncode, run.stderr) == (0, "")
    imported, (extra, message) = map(json.loads, run.stdout.splitlines())
    assert (imported, extra) == (False, "diskcache")
    assert 'pip install "rag-embedkit[diskcache]"' in message
