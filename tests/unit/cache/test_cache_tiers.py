"""Several caches as one: what is read from which, and what is written when."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from support.caches import DictCache
from support.embedders import fake_embedder
from support.waiting import wait_until, wait_until_joined

from embedkit_core import ConfigurationError
from embedkit_core.cache import CacheFolder, Entry, open_cache
from embedkit_core.cache import tiers as tiers_module
from embedkit_core.cache.access import OpenCache
from embedkit_core.cache.tiers import CacheTiers
from embedkit_core.testing import FakeServer, MemoryCoordinator

TIMEOUT = 20
KEYS = [bytes([n]) * 32 for n in range(4)]


def entry(n: int) -> Entry:
    return Entry(np.full(8, n, np.float32))


class GatedWrites(DictCache):
    """A cache whose writes wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived, self.gate = threading.Event(), threading.Event()

    def set_many(self, items):
        self.arrived.set()
        assert self.gate.wait(TIMEOUT)
        super().set_many(items)


class FailingCache(DictCache):
    def get_many(self, keys):
        raise OSError("a message that may hold a secret")

    set_many = get_many


class CountingCache(DictCache):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bytes]] = []

    def get_many(self, keys):
        self.asked.append(list(keys))
        return super().get_many(keys)


def key_of(embedder, text: str) -> bytes:
    return bytes.fromhex(embedder.explain(text).key)


# Reads


def test_a_tier_is_asked_only_for_what_those_before_it_lack(tmp_path):
    first, second, third = open_cache(tmp_path), CountingCache(), CountingCache()
    first.set_many([(KEYS[0], entry(0))])
    second.rows[KEYS[1]] = entry(1)
    third.rows[KEYS[2]] = entry(2)
    embedder = fake_embedder(FakeServer(), cache=[tmp_path, second, third])
    found = {key: one for block in embedder.vector_cache.read(KEYS, hot=False) for key, one in block.items()}
    assert {key: one.vector[0] for key, one in found.items()} == {KEYS[0]: 0, KEYS[1]: 1, KEYS[2]: 2}
    assert (second.asked, third.asked) == ([KEYS[1:]], [KEYS[2:]])
    assert next(embedder.vector_cache.read(KEYS[:1], hot=False)).keys() == {KEYS[0]}
    assert len(second.asked) == 1


def test_what_a_lower_tier_has_is_copied_into_the_tiers_above_with_its_vector_space(tmp_path):
    server, lower = FakeServer(), DictCache()
    with fake_embedder(server, cache=lower) as other:
        other.embed(["one", "two"])
    with fake_embedder(server, cache=[tmp_path, lower]) as embedder:
        assert embedder.embed(["one", "two"]).usage.cache_hits == 2
    [space] = CacheFolder(tmp_path).stats().spaces
    assert (space.space, space.vectors) == (embedder.space, 2)
    assert fake_embedder(server, cache=tmp_path).embed(["one", "two"]).usage.cache_hits == 2


def test_a_read_of_more_than_the_queue_holds_is_copied_into_the_tiers_above_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tiers_module, "MAX_QUEUED_BYTES", 20_000)
    texts = [f"text {n}" for n in range(5000)]
    server = FakeServer()
    with fake_embedder(server, cache=tmp_path / "lower") as other:
        other.embed(texts)
    with fake_embedder(server, cache=[tmp_path / "upper", tmp_path / "lower"]) as embedder:
        assert embedder.embed(texts).usage.cache_hits == 5000
    assert CacheFolder(tmp_path / "upper").stats().vectors == 5000


def test_an_invalid_entry_of_a_tier_is_a_miss_and_is_not_copied(tmp_path):
    server, lower = FakeServer(), DictCache()
    embedder = fake_embedder(server, cache=[tmp_path, lower])
    lower.rows[key_of(embedder, "one")] = Entry(np.full(8, np.nan, np.float32))
    with embedder:
        assert embedder.embed(["one"]).usage.sent == 1
    assert fake_embedder(server, cache=tmp_path).embed(["one"]).usage.cache_hits == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_a_tier_that_fails_is_empty_and_its_failures_are_logged_once(failing, caplog):
    server, works = FakeServer(), DictCache()
    caches = [works, FailingCache()] if failing else [FailingCache(), works]
    embedder = fake_embedder(server, cache=caches)
    for text in ("one", "two", "one", "two"):
        assert np.array_equal(embedder.embed([text]).vectors[0], server.vector(text, server.received[0].body))
        embedder.close()
    assert len(server.received) == 2
    assert len(works.rows) == 2
    assert embedder.vector_cache.backend.write_failures == (2 if failing else 4)  # it was copied from the second, too
    assert sorted(record.getMessage() for record in caplog.records) == [
        "Cache could not be read (OSError); further failures are not logged.",
        f"Cache tier {failing + 1} (FailingCache) could not be written (OSError); its vectors may be missing there. "
        "Further failures are not logged.",
    ]


# Writes


def test_a_caller_gets_a_row_as_soon_as_the_first_tier_has_it(tmp_path):
    server, slow = FakeServer(), GatedWrites()
    embedder = fake_embedder(server, cache=[tmp_path, slow])
    assert embedder.embed(["one"]).usage.sent == 1
    assert slow.arrived.wait(TIMEOUT)
    assert not slow.rows
    assert fake_embedder(server, cache=tmp_path).embed(["one"]).usage.cache_hits == 1
    slow.gate.set()
    embedder.close()
    assert len(slow.rows) == 1


@pytest.mark.parametrize("text", ["one", "one two three four five six seven eight"], ids=["whole", "split"])
def test_the_claims_of_a_request_last_until_all_tiers_have_its_rows(text, tmp_path):
    server, shared, coordinator = FakeServer(max_words=2), GatedWrites(), MemoryCoordinator()
    first, second = (
        fake_embedder(
            server,
            cache=[tmp_path / name, shared],
            coordination=coordinator.process(),
            api_key=name,
            on_long_text="mean",
        )
        for name in ("1", "2")
    )
    assert first.embed([text]).usage.sent == 1
    requests = len(server.received)
    results = []
    thread = threading.Thread(target=lambda: results.append(second.embed([text]).usage))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    shared.gate.set()
    thread.join(TIMEOUT)
    assert [(usage.sent, usage.coalesced) for usage in results] == [(0, 1)]
    assert len(server.received) == requests


@pytest.mark.parametrize("is_stored_first", [True, False])
def test_a_caller_with_another_cache_that_joins_during_a_commit_keeps_the_claims_until_both_have_the_row(
    is_stored_first,
):
    server, coordinator = FakeServer(), MemoryCoordinator()
    first, lower, other = GatedWrites(), GatedWrites(), GatedWrites()
    one = fake_embedder(server, cache=[first, lower], coordination=coordinator)
    two = fake_embedder(server, cache=other, coordination=coordinator)
    threads = [threading.Thread(target=embedder.embed, args=(["one"],)) for embedder in (one, two)]
    threads[0].start()
    assert first.arrived.wait(TIMEOUT)
    threads[1].start()
    wait_until_joined(two, 2)
    first.gate.set()
    assert other.arrived.wait(TIMEOUT)
    for cache in (lower, other) if is_stored_first else (other, lower):
        assert coordinator._shared.leases
        cache.gate.set()
        (one.close if cache is lower else threads[1].join)()
    threads[0].join(TIMEOUT)
    wait_until(one, lambda _: not coordinator._shared.leases)


def test_a_write_that_finds_no_room_in_the_queue_counts_as_failed_and_ends_the_claims(monkeypatch, caplog):
    monkeypatch.setattr(tiers_module, "MAX_QUEUED_BYTES", 40)
    monkeypatch.setattr(tiers_module, "MAX_QUEUE_WAIT", 0.05)
    first, slow = DictCache(), GatedWrites()
    tiers = CacheTiers([OpenCache(first, trusted=False, owned=False), OpenCache(slow, trusted=False, owned=False)])
    done = []
    for n in range(3):
        tiers.set_many_then([(KEYS[n], entry(n))], lambda n=n: done.append(n))
    assert len(first.rows) == 3
    assert done == [1, 2]
    slow.gate.set()
    tiers.flush(TIMEOUT)
    assert done == [1, 2, 0]
    tiers.set_many_then([(KEYS[3], entry(3))], lambda: None)
    tiers.close()
    assert slow.rows.keys() == {KEYS[0], KEYS[3]}
    assert tiers.write_failures == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Cache tier 2 (GatedWrites) could not be written (its queue is full); its vectors may be missing there. "
        "Further failures are not logged."
    ]


def test_imported_vectors_are_in_all_tiers(tmp_path):
    server, lower = FakeServer(), DictCache()
    embedder = fake_embedder(server, cache=[tmp_path, lower])
    assert embedder.import_vectors(["one"], [np.ones(8, np.float32)], verify=0).imported == 1
    assert len(lower.rows) == 1
    assert fake_embedder(server, cache=tmp_path).embed(["one"]).usage.cache_hits == 1


def test_a_tier_is_written_by_one_thread_at_a_time():
    """Also if it is a cache of its own elsewhere."""

    class Alone(DictCache):
        def __init__(self):
            super().__init__()
            self.busy, self.overlaps = threading.Lock(), 0

        def set_many(self, items):
            if not self.busy.acquire(blocking=False):
                self.overlaps += 1
                return
            threading.Event().wait(0.002)
            super().set_many(items)
            self.busy.release()

    server, lower = FakeServer(), Alone()
    embedders = [fake_embedder(server, cache=cache) for cache in (lower, [DictCache(), lower], [DictCache(), lower])]
    for n in range(20):
        for index, embedder in enumerate(embedders):
            embedder.embed([f"{index} {n}"])
    for embedder in embedders:
        embedder.close()
    assert (lower.overlaps, len(lower.rows)) == (0, 60)


def test_embedders_with_the_same_caches_share_their_tiers(tmp_path):
    lower = DictCache()
    one, two = (fake_embedder(FakeServer(), cache=(tmp_path, lower)) for _ in range(2))
    assert one.vector_cache.backend is two.vector_cache.backend
    other = fake_embedder(FakeServer(), cache=(lower, tmp_path))
    assert other.vector_cache.backend is not one.vector_cache.backend


# The end of processes, and forks

PREAMBLE = """
import os, sys, time
from embedkit_core import Embedder
from embedkit_core.cache import open_cache
from embedkit_core.testing import FakeServer

class Slow:
    def __init__(self, folder): self.cache = open_cache(folder)
    def get_many(self, keys): return self.cache.get_many(keys)
    def set_many(self, items): time.sleep(0.3); self.cache.set_many(items)
    def close(self): pass

server = FakeServer()
"""


def run_script(code: str, *arguments: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-c", PREAMBLE + code, *arguments], cwd=cwd, check=True, timeout=60)


def test_the_end_of_a_process_waits_until_all_tiers_are_written(tmp_path):
    code = "Embedder('fake:model', base_url=server.url, cache=['1', Slow('2')]).embed(['one', 'two'])"
    run_script(code, cwd=tmp_path)
    assert CacheFolder(tmp_path / "2").stats().vectors == 2


def test_the_end_of_a_process_without_requests_waits_until_what_it_read_is_copied(tmp_path):
    code = """
if sys.argv[1] == "write":
    Embedder('fake:model', base_url=server.url, cache='2').embed(['one', 'two'])
else:
    embedder = Embedder('fake:model', base_url=server.url, cache=[Slow('1'), '2'])
    assert embedder.embed(['one', 'two']).usage.cache_hits == 2
"""
    for step in ("write", "read"):
        run_script(code, step, cwd=tmp_path)
    assert CacheFolder(tmp_path / "1").stats().vectors == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_writes_its_own_rows_and_not_those_of_its_parent(tmp_path):
    code = """
embedder = Embedder('fake:model', base_url=server.url, cache=['1', Slow('2')])
embedder.embed(['one'])
child = os.fork()
if child == 0:
    tiers = embedder.vector_cache.backend
    assert tiers._jobs.empty() and tiers._thread is None
    embedder.embed(['two'])
    embedder.close()
    assert tiers.write_failures == 0
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_script(code, cwd=tmp_path)
    assert CacheFolder(tmp_path / "2").stats().vectors == 2


# Arguments


@pytest.mark.parametrize(
    ("caches", "problem"),
    [
        ([], "at least two caches \\(got 0\\)"),
        (["folder"], "at least two caches \\(got 1\\)"),
        (["folder", None], "must not contain None"),
        (["folder", False], "must not contain False"),
        (["folder", True], "must not be True"),
        (["folder", ""], "must not be empty"),
        (["folder", ["a", "b"]], "must not contain another list"),
        (["folder", "folder"], "the same cache twice"),
        (["folder", "./folder"], "the same cache twice"),
        (["folder", 7], "or a list of caches"),
    ],
)
def test_a_list_that_is_no_list_of_caches_is_refused(caches, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"^cache: .*{problem}"):
        fake_embedder(FakeServer(), cache=caches)
    assert not list(tmp_path.iterdir())
