"""A query that is in memory or in a cache folder is answered and counted without a call of the engine."""

import time

import numpy as np
import pytest
from support.embedders import fake_embedder

from embedkit_core import TimedOutError, track_usage
from embedkit_core.cache.disk.pool import Pool
from embedkit_core.calls.call import Call
from embedkit_core.observability import hooks
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings

QUERY = "Which animal purrs?"


class Spans:
    """An observer that notes the calls that it sees."""

    def __init__(self):
        self.begun, self.ended = 0, []

    def begin(self, info):
        self.begun += 1
        return self

    def end(self, outcome):
        self.ended.append(outcome.usage.cache_hits)


@pytest.fixture
def server():
    return FakeServer(dimensions=4)


@pytest.fixture
def calls(monkeypatch):
    """The texts of the calls that are made."""
    made = []
    prepare = Call.prepare

    def noted(call):
        made.append(call._texts)
        return prepare(call)

    monkeypatch.setattr(Call, "prepare", noted)
    return made


@pytest.fixture
def filled(server, tmp_path):
    """The vector of the query, which is in the cache folder."""
    with fake_embedder(server, cache=tmp_path) as writer:
        return writer.embed_query(QUERY)


def test_a_query_in_the_folder_needs_no_call_and_is_in_memory_afterwards(server, filled, calls, tmp_path):
    with fake_embedder(server, cache=tmp_path) as embedder, track_usage() as tracker:
        assert embedder.dimensions == 4
        places = []
        for _ in range(2):
            places.append(embedder.explain(QUERY, input_type="query").served_from)
            vector = embedder.embed_query(QUERY)
            assert vector.tolist() == filled.tolist()
            vector[:] = np.nan  # it belongs to the caller
        assert (places, calls) == (["cache", "memory"], [])
        for usage in (embedder.usage, tracker.usage):
            assert (usage.texts, usage.cache_hits, usage.sent, usage.requests) == (2, 2, 0, 0)


async def test_a_coroutine_reads_the_folder_on_another_thread_and_memory_at_once(server, filled, calls, tmp_path):
    async with fake_embedder(server, cache=tmp_path) as embedder:
        for _ in range(2):
            assert (await embedder.aembed_query(QUERY)).tolist() == filled.tolist()
        assert calls == [[QUERY]]
        assert embedder.usage.cache_hits == 2


def test_an_adapter_needs_no_call_either(server, filled, calls, tmp_path):
    made = EmbedKitEmbeddings(model="fake:model", base_url=server.url, cache=tmp_path)
    assert [made.embed_query(QUERY) for _ in range(2)] == [filled.tolist()] * 2
    assert (calls, made.embedder.usage.cache_hits) == ([], 2)


def test_a_query_that_the_folder_lacks_is_sent_once(server, filled, calls, tmp_path):
    other = "Which animal barks?"
    with fake_embedder(server, cache=tmp_path) as embedder:
        for _ in range(2):
            embedder.embed_query(other)
        assert (calls, server.billed[other]) == ([[other]], 1)
        usage = embedder.usage
        assert (usage.texts, usage.cache_hits, usage.sent) == (2, 1, 1)


def test_observers_see_the_time_of_a_read_from_the_folder(server, filled, calls, tmp_path):
    spans = Spans()
    hooks.add_observer(spans)
    try:
        with fake_embedder(server, cache=tmp_path) as embedder:
            for _ in range(2):
                embedder.embed_query(QUERY)
    finally:
        hooks.remove_observer(spans)
    assert (spans.begun, spans.ended) == (2, [1, 1])
    assert calls == [[QUERY]]  # the span is open while the folder is read


def test_a_cache_that_may_block_is_read_by_the_call_alone(server, calls):
    class Slow:
        """A cache of the user's: it may use a network."""

        def __init__(self):
            self.calls_before = []

        def get_many(self, keys):
            self.calls_before.append(len(calls))
            return {}

        def set_many(self, items):
            pass

        def close(self):
            pass

    cache = Slow()
    with fake_embedder(server, cache=cache) as embedder:
        embedder.embed_query(QUERY)
    assert set(cache.calls_before) == {1}


def test_a_query_in_the_second_of_two_folders_is_copied_into_the_first(server, filled, tmp_path):
    with fake_embedder(server, cache=[tmp_path / "first", tmp_path]) as embedder:
        assert embedder.embed_query(QUERY).tolist() == filled.tolist()
        embedder.vector_cache.flush(5.0)
    with fake_embedder(server, cache=tmp_path / "first") as embedder:
        assert embedder.embed_query(QUERY).tolist() == filled.tolist()
        assert embedder.usage.cache_hits == 1


def test_a_deadline_includes_the_read_of_the_folder(server, filled, monkeypatch, tmp_path):
    read = Pool.read

    def slow(pool, keys):
        time.sleep(0.3)
        return read(pool, keys)

    monkeypatch.setattr(Pool, "read", slow)
    with fake_embedder(server, cache=tmp_path, deadline=0.2) as embedder, pytest.raises(TimedOutError):
        embedder.embed_query("Which animal barks?")
