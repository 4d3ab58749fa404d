"""The conformance suite for caches."""

# ruff: noqa: D102 - test names are sentences

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from embedkit_core.cache import Cache, Entry
from embedkit_core.common.types import Vectors
from embedkit_core.embedder import Embedder
from embedkit_core.testing.another_process import read_in_another_process
from embedkit_core.testing.fake import FakeServer
from embedkit_core.testing.suite import Suite, skip

TEXTS = ["one text", "another text", "and a third"]
WIDTHS = (1, 2, 3, 8, 384, 1536, 3072, 8192)
MANY_KEYS = 5000
SPECIAL_VALUES = (0.0, -0.0, 1.0, -1 / 3, 1e-45, 1.17549435e-38, -3.4028235e38)  # subnormal, smallest, largest


class CacheSuite(Suite):
    """Tests that every cache must pass. Subclass it in a test file::

        class TestAcmeCache(CacheSuite):
            def make(self, folder):
                return AcmeCache(f"acme://{folder}")

    If the cache is persistent, another process imports the class and calls `make`, on an instance with the attributes
    that fixtures have set, if they can be pickled.

    Attributes:
        persistent: False if a new cache object in the same folder is empty.
    """

    persistent: bool = True

    def make(self, folder: Path) -> Cache:
        """Return the cache under test; a persistent cache returns the stored vectors of the same folder.

        Each test has its own empty folder. A cache that is not on disk uses the path as a unique name.
        """
        raise NotImplementedError(f"{type(self).__name__}: define make(self, folder), which returns the cache.")

    def test_the_cache_has_the_required_methods(self, tmp_path: Path) -> None:
        assert isinstance(self.make(tmp_path), Cache), "the cache must have get_many(keys), set_many(items) and close()"

    def test_a_vector_is_returned_bit_for_bit(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = [(make_key(n), Entry(make_vector(n, width))) for n, width in enumerate(WIDTHS)]
        items.append((make_key(len(items)), Entry(np.array(SPECIAL_VALUES, dtype=np.float32))))
        cache.set_many(items)
        found = cache.get_many([key for key, _ in items])
        assert_holds(found, items)

    def test_a_view_of_a_matrix_is_returned_bit_for_bit(self, tmp_path: Path) -> None:
        """The engine stores views of matrices, which may be non-contiguous."""
        cache = self.make(tmp_path)
        matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
        items = [
            (make_key(0), Entry(matrix[1])),
            (make_key(1), Entry(matrix[:, 2])),
            (make_key(2), Entry(matrix[2, ::-1])),
        ]
        cache.set_many(items)
        assert_holds(cache.get_many([key for key, _ in items]), items)

    def test_the_truncated_flag_is_stored(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = [(make_key(n), Entry(make_vector(n), truncated=n % 2 == 0)) for n in range(4)]
        cache.set_many(items)
        found = cache.get_many([key for key, _ in items])
        assert [found[key].truncated for key, _ in items] == [True, False, True, False], "Entry.truncated is not stored"

    def test_an_unknown_key_is_not_returned(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        assert cache.get_many([make_key(0)]) == {}, "get_many() of an empty cache must return {}"
        cache.set_many([(make_key(1), Entry(make_vector(1)))])
        assert list(cache.get_many([make_key(0), make_key(1), make_key(2)])) == [make_key(1)]

    def test_keys_that_differ_in_one_bit_are_distinct(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        keys = [
            bytes(32),
            bytes(31) + b"\1",
            b"\x80" + bytes(31),
            b"\xff" * 32,
            b"'%/\\\n\r\0*" * 4,
            b"ab" * 16,
            b"AB" * 16,
        ]
        keys += [flip_bit(key, bit) for key in (b"ab" * 16, make_key(0)) for bit in range(256)]
        keys = list(dict.fromkeys(keys))
        items = [(key, Entry(make_vector(n))) for n, key in enumerate(keys)]
        cache.set_many(items)
        assert_holds(cache.get_many(keys), items)

    def test_empty_reads_and_writes_are_accepted(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        cache.set_many([])
        assert cache.get_many([]) == {}
        cache.set_many([(make_key(0), Entry(make_vector(0)))])
        cache.set_many([])
        assert cache.get_many([]) == {}

    def test_the_last_write_to_a_key_wins(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        for entry in (Entry(make_vector(1)), Entry(make_vector(2), truncated=True), Entry(make_vector(3, 100))):
            cache.set_many([(make_key(0), entry)])
            assert_holds(cache.get_many([make_key(0)]), [(make_key(0), entry)])

    def test_thousands_of_keys_can_be_read_at_once(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = [(make_key(n), Entry(make_vector(n))) for n in range(MANY_KEYS)]
        cache.set_many(items)
        found = cache.get_many([make_key(n) for n in range(2 * MANY_KEYS)])
        assert_holds(found, items)

    def test_changing_a_stored_array_does_not_change_the_cache(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        vector = make_vector(0)
        cache.set_many([(make_key(0), Entry(vector))])
        vector[:] = 7.0
        assert_holds(cache.get_many([make_key(0)]), [(make_key(0), Entry(make_vector(0)))])

    def test_changing_a_returned_array_does_not_change_the_cache(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        cache.set_many([(make_key(0), Entry(make_vector(0)))])
        returned = cache.get_many([make_key(0)])[make_key(0)].vector
        with contextlib.suppress(ValueError):  # the array may be read-only
            returned[:] = 7.0
        assert_holds(cache.get_many([make_key(0)]), [(make_key(0), Entry(make_vector(0)))])

    def test_a_closed_cache_reopens_on_the_next_call(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        cache.close()
        items = [(make_key(0), Entry(make_vector(0)))]
        cache.set_many(items)
        cache.close()
        cache.close()
        found = cache.get_many([make_key(0)])
        if self.persistent:
            assert_holds(found, items)
        cache.set_many(items)
        assert_holds(cache.get_many([make_key(0)]), items)

    def test_a_new_cache_object_reads_the_stored_vectors(self, tmp_path: Path) -> None:
        if not self.persistent:
            skip("persistent = False")
        first, items = self.make(tmp_path), [(make_key(n), Entry(make_vector(n), n == 1)) for n in range(3)]
        first.set_many(items)
        assert_holds(self.make(tmp_path).get_many([key for key, _ in items]), items)
        first.close()
        assert_holds(self.make(tmp_path).get_many([key for key, _ in items]), items)

    def test_another_process_reads_the_stored_vectors(self, tmp_path: Path) -> None:
        """The cache is closed first: some caches can be open in only one process."""
        if not self.persistent:
            skip("persistent = False")
        cache, items = self.make(tmp_path), [(make_key(n), Entry(make_vector(n), n == 1)) for n in range(3)]
        cache.set_many(items)
        cache.close()
        found = read_in_another_process(self, tmp_path, [key for key, _ in items])
        assert found, (
            "another process finds no stored vector. Set persistent = False, or store vectors outside of the process."
        )
        assert_holds(found, items)

    def test_different_threads_can_write_in_turn(self, tmp_path: Path) -> None:
        """Writers are the cache thread of the library and callers of import_vectors(), one at a time."""
        cache = self.make(tmp_path)
        items = [(make_key(n), Entry(make_vector(n))) for n in range(4)]
        for item in items:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(cache.set_many, [item]).result()
        cache.set_many([(make_key(4), Entry(make_vector(4)))])
        assert_holds(cache.get_many([make_key(n) for n in range(5)]), [*items, (make_key(4), Entry(make_vector(4)))])

    def test_threads_that_read_during_a_write_get_complete_vectors(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        keys = [make_key(n) for n in range(20)]
        done, problems = threading.Event(), list[str]()

        def read() -> None:
            try:
                while not done.is_set():
                    for entry in cache.get_many(keys).values():
                        if len(entry.vector) != 256 or len(set(entry.vector.tolist())) != 1:
                            problems.append("a vector that was never stored")
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for version in range(1, 31):
            cache.set_many([(key, Entry(np.full(256, version, dtype=np.float32))) for key in keys])
        done.set()
        for reader in readers:
            reader.join()
        assert not problems, f"a thread that reads while another one writes gets {problems[0]}"
        last = Entry(np.full(256, 30, dtype=np.float32))
        assert_holds(cache.get_many(keys), [(key, last) for key in keys])

    def test_an_embedder_with_the_cache_sends_each_text_once(self, tmp_path: Path) -> None:
        server, cache = FakeServer(), self.make(tmp_path)
        rows = Embedder("fake:model", base_url=server.url, cache=cache).embed(TEXTS).vectors
        for again in (cache, self.make(tmp_path) if self.persistent else cache):
            embedder = Embedder("fake:model", base_url=server.url, cache=again)
            assert np.array_equal(embedder.embed(TEXTS).vectors, rows)
            assert np.array_equal(asyncio.run(embedder.aembed(TEXTS)).vectors, rows)
            assert embedder.usage.cache_hits == 2 * len(TEXTS)
        assert len(server.received) == 1, "a cached text is sent again"

    def test_an_embedder_gets_no_cached_vector_of_another_input_type_or_width(self, tmp_path: Path) -> None:
        server, cache = FakeServer(asymmetric=True), self.make(tmp_path)
        Embedder("fake:model", base_url=server.url, cache=cache).embed(TEXTS)
        query = Embedder("fake:model", base_url=server.url, cache=cache)
        narrow = Embedder("fake:model", base_url=server.url, cache=cache, dimensions=5)
        query.embed(TEXTS, input_type="query")
        assert narrow.embed(TEXTS).vectors.shape == (len(TEXTS), 5)
        assert (query.usage.cache_hits, narrow.usage.cache_hits) == (0, 0)


def make_key(n: int) -> bytes:
    """Return a key like those of the library: 32 bytes."""
    return hashlib.sha256(f"key {n}".encode()).digest()


def flip_bit(key: bytes, bit: int) -> bytes:
    """Return a key that differs in one bit."""
    return (int.from_bytes(key, "big") ^ (1 << bit)).to_bytes(len(key), "big")


def make_vector(n: int, width: int = 8) -> Vectors:
    """Return a random vector, float32, shape (width,)."""
    return np.random.default_rng(n).standard_normal(width).astype(np.float32)


def assert_holds(found: dict[bytes, Entry], items: list[tuple[bytes, Entry]]) -> None:
    """Fail unless the found entries equal the stored ones, bit for bit."""
    assert isinstance(found, dict), f"get_many() returns a {type(found).__name__}. Return a dict from key to Entry."
    assert set(found) == {key for key, _ in items}, (
        f"get_many() returns other keys than stored ({len(found)} returned, {len(items)} stored)"
    )
    for key, stored in items:
        entry = found[key]
        assert isinstance(entry, Entry), f"get_many() returns a {type(entry).__name__} for a key. Return an Entry."
        vector = entry.vector
        assert isinstance(vector, np.ndarray), "Entry.vector is not a numpy array"
        assert vector.dtype == np.float32, f"a vector is returned as {vector.dtype} instead of float32"
        assert vector.shape == stored.vector.shape, (
            f"a vector of shape {stored.vector.shape} is returned with shape {vector.shape}"
        )
        assert vector.tobytes() == stored.vector.tobytes(), "a vector is returned with other numbers"
        assert entry.truncated is stored.truncated, (
            f"truncated is returned as {entry.truncated!r} instead of {stored.truncated}"
        )
