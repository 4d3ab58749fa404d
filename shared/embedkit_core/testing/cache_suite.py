"""The conformance suite for caches."""

# ruff: noqa: D102 - the name of a case is its sentence

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
from embedkit_core.testing.another_process import found_by_another_process
from embedkit_core.testing.fake import FakeServer
from embedkit_core.testing.suite import Suite, skip

TEXTS = ["one text", "another text", "and a third"]
WIDTHS = (1, 2, 3, 8, 384, 1536, 3072, 8192)
MANY = 5000
AWKWARD = (0.0, -0.0, 1.0, -1 / 3, 1e-45, 1.17549435e-38, -3.4028235e38)  # the smallest, the largest, both zeros


class CacheSuite(Suite):
    """What every cache proves, by a subclass in a test file of its own that pytest collects::

        class TestAcmeCache(CacheSuite):
            def make(self, folder):
                return AcmeCache(f"acme://{folder}")

    `persistent = False` says that a cache made anew is empty. Where it is not, another process imports the class and
    calls `make` too, on an object with what fixtures have set on this one, if that can be pickled.
    """

    persistent: bool = True

    def make(self, folder: Path) -> Cache:
        """Give the cache under test; made again in the same folder, it holds what was kept there.

        Each case has an empty folder of its own. A cache that is elsewhere takes its path for the name of a part that
        is empty.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method make(self, folder), which gives the cache")

    def test_it_has_the_methods_of_a_cache(self, tmp_path: Path) -> None:
        assert isinstance(self.make(tmp_path), Cache), "a cache has get_many(keys), set_many(items) and close()"

    def test_a_vector_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = [(key_of(n), Entry(vector_of(n, width))) for n, width in enumerate(WIDTHS)]
        items.append((key_of(len(items)), Entry(np.array(AWKWARD, dtype=np.float32))))
        cache.set_many(items)
        found = cache.get_many([key for key, _ in items])
        assert_holds(found, items)

    def test_a_row_of_a_matrix_comes_back_bit_for_bit(self, tmp_path: Path) -> None:
        """The library hands out views: of a row, which is contiguous, and perhaps one day of a column, which is not."""
        cache = self.make(tmp_path)
        matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
        items = [(key_of(0), Entry(matrix[1])), (key_of(1), Entry(matrix[:, 2])), (key_of(2), Entry(matrix[2, ::-1]))]
        cache.set_many(items)
        assert_holds(cache.get_many([key for key, _ in items]), items)

    def test_what_was_cut_is_still_known_to_be_cut(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = [(key_of(n), Entry(vector_of(n), truncated=n % 2 == 0)) for n in range(4)]
        cache.set_many(items)
        found = cache.get_many([key for key, _ in items])
        assert [found[key].truncated for key, _ in items] == [True, False, True, False], "Entry.truncated is not kept"

    def test_an_unknown_key_is_absent(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        assert cache.get_many([key_of(0)]) == {}, "a cache that holds nothing gives {}"
        cache.set_many([(key_of(1), Entry(vector_of(1)))])
        assert list(cache.get_many([key_of(0), key_of(1), key_of(2)])) == [key_of(1)]

    def test_keys_that_differ_in_one_bit_are_different(self, tmp_path: Path) -> None:
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
        keys += [flipped(key, bit) for key in (b"ab" * 16, key_of(0)) for bit in range(256)]
        keys = list(dict.fromkeys(keys))
        items = [(key, Entry(vector_of(n))) for n, key in enumerate(keys)]
        cache.set_many(items)
        assert_holds(cache.get_many(keys), items)

    def test_nothing_can_be_asked_and_kept(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        cache.set_many([])
        assert cache.get_many([]) == {}
        cache.set_many([(key_of(0), Entry(vector_of(0)))])
        cache.set_many([])
        assert cache.get_many([]) == {}

    def test_the_last_vector_kept_under_a_key_counts(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        for entry in (Entry(vector_of(1)), Entry(vector_of(2), truncated=True), Entry(vector_of(3, 100))):
            cache.set_many([(key_of(0), entry)])
            assert_holds(cache.get_many([key_of(0)]), [(key_of(0), entry)])

    def test_thousands_of_keys_can_be_asked_at_once(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        items = [(key_of(n), Entry(vector_of(n))) for n in range(MANY)]
        cache.set_many(items)
        found = cache.get_many([key_of(n) for n in range(2 * MANY)])
        assert_holds(found, items)

    def test_a_vector_changed_after_it_was_kept_changes_nothing_kept(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        vector = vector_of(0)
        cache.set_many([(key_of(0), Entry(vector))])
        vector[:] = 7.0
        assert_holds(cache.get_many([key_of(0)]), [(key_of(0), Entry(vector_of(0)))])

    def test_a_vector_that_was_handed_out_cannot_change_what_is_kept(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        cache.set_many([(key_of(0), Entry(vector_of(0)))])
        handed_out = cache.get_many([key_of(0)])[key_of(0)].vector
        with contextlib.suppress(ValueError):  # read-only
            handed_out[:] = 7.0
        assert_holds(cache.get_many([key_of(0)]), [(key_of(0), Entry(vector_of(0)))])

    def test_a_cache_that_was_closed_is_opened_by_the_next_call(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        cache.close()
        items = [(key_of(0), Entry(vector_of(0)))]
        cache.set_many(items)
        cache.close()
        cache.close()
        found = cache.get_many([key_of(0)])
        if self.persistent:
            assert_holds(found, items)
        cache.set_many(items)
        assert_holds(cache.get_many([key_of(0)]), items)

    def test_what_was_kept_is_there_for_whoever_comes_next(self, tmp_path: Path) -> None:
        if not self.persistent:
            skip("the suite says persistent = False")
        first, items = self.make(tmp_path), [(key_of(n), Entry(vector_of(n), n == 1)) for n in range(3)]
        first.set_many(items)
        assert_holds(self.make(tmp_path).get_many([key for key, _ in items]), items)
        first.close()
        assert_holds(self.make(tmp_path).get_many([key for key, _ in items]), items)

    def test_another_process_finds_what_was_kept(self, tmp_path: Path) -> None:
        """Closed first, since a cache may be open in one process only."""
        if not self.persistent:
            skip("the suite says persistent = False")
        cache, items = self.make(tmp_path), [(key_of(n), Entry(vector_of(n), n == 1)) for n in range(3)]
        cache.set_many(items)
        cache.close()
        found = found_by_another_process(self, tmp_path, [key for key, _ in items])
        assert found, "another process finds nothing of what was kept: say persistent = False, or keep it elsewhere"
        assert_holds(found, items)

    def test_threads_may_write_one_after_another(self, tmp_path: Path) -> None:
        """The library's own thread, and whoever imports vectors; only one at a time."""
        cache = self.make(tmp_path)
        items = [(key_of(n), Entry(vector_of(n))) for n in range(4)]
        for item in items:
            with ThreadPoolExecutor(1) as another:
                another.submit(cache.set_many, [item]).result()
        cache.set_many([(key_of(4), Entry(vector_of(4)))])
        assert_holds(cache.get_many([key_of(n) for n in range(5)]), [*items, (key_of(4), Entry(vector_of(4)))])

    def test_threads_that_read_while_one_writes_see_whole_vectors(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        keys = [key_of(n) for n in range(20)]
        done, wrong = threading.Event(), list[str]()

        def read() -> None:
            try:
                while not done.is_set():
                    for entry in cache.get_many(keys).values():
                        if len(entry.vector) != 256 or len(set(entry.vector.tolist())) != 1:
                            wrong.append("a vector that was never kept")
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for version in range(1, 31):
            cache.set_many([(key, Entry(np.full(256, version, dtype=np.float32))) for key in keys])
        done.set()
        for reader in readers:
            reader.join()
        assert not wrong, f"a thread that reads while another writes gets {wrong[0]}"
        last = Entry(np.full(256, 30, dtype=np.float32))
        assert_holds(cache.get_many(keys), [(key, last) for key in keys])

    def test_an_embedder_with_it_sends_nothing_twice(self, tmp_path: Path) -> None:
        server, cache = FakeServer(), self.make(tmp_path)
        rows = Embedder("fake:model", base_url=server.url, cache=cache).embed(TEXTS).vectors
        for again in (cache, self.make(tmp_path) if self.persistent else cache):
            embedder = Embedder("fake:model", base_url=server.url, cache=again)
            assert np.array_equal(embedder.embed(TEXTS).vectors, rows)
            assert np.array_equal(asyncio.run(embedder.aembed(TEXTS)).vectors, rows)
            assert embedder.usage.cache_hits == 2 * len(TEXTS)
        assert len(server.received) == 1, "a text whose vector was kept is sent again"

    def test_an_embedder_with_it_is_served_nothing_of_another_role_or_width(self, tmp_path: Path) -> None:
        server, cache = FakeServer(asymmetric=True), self.make(tmp_path)
        Embedder("fake:model", base_url=server.url, cache=cache).embed(TEXTS)
        query = Embedder("fake:model", base_url=server.url, cache=cache)
        narrow = Embedder("fake:model", base_url=server.url, cache=cache, dimensions=5)
        query.embed(TEXTS, input_type="query")
        assert narrow.embed(TEXTS).vectors.shape == (len(TEXTS), 5)
        assert (query.usage.cache_hits, narrow.usage.cache_hits) == (0, 0)


def key_of(n: int) -> bytes:
    """Give a key as the library makes them: 32 bytes."""
    return hashlib.sha256(f"key {n}".encode()).digest()


def flipped(key: bytes, bit: int) -> bytes:
    """Give a key that differs in one bit."""
    return (int.from_bytes(key, "big") ^ (1 << bit)).to_bytes(len(key), "big")


def vector_of(n: int, width: int = 8) -> Vectors:
    """Give a vector, float32 (width,)."""
    return np.random.default_rng(n).standard_normal(width).astype(np.float32)


def assert_holds(found: dict[bytes, Entry], items: list[tuple[bytes, Entry]]) -> None:
    """Fail unless what was found is what was kept, bit for bit."""
    assert isinstance(found, dict), f"get_many gives a {type(found).__name__}; give a dict from key to Entry"
    assert set(found) == {key for key, _ in items}, f"{len(found)} entries came back of {len(items)}"
    for key, kept in items:
        entry = found[key]
        assert isinstance(entry, Entry), f"get_many gives a {type(entry).__name__} for a key; give an Entry"
        vector = entry.vector
        assert isinstance(vector, np.ndarray), "Entry.vector is no numpy array"
        assert vector.dtype == np.float32, f"a vector came back as {vector.dtype} instead of float32"
        assert vector.shape == kept.vector.shape, f"a vector of {kept.vector.shape} came back as {vector.shape}"
        assert vector.tobytes() == kept.vector.tobytes(), "a vector came back with other numbers"
        assert entry.truncated is kept.truncated, (
            f"truncated came back as {entry.truncated!r} instead of {kept.truncated}"
        )
