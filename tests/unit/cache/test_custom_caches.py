"""Caches of the user: any object with the methods of a cache, also if it fails or returns invalid entries."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
import pytest
from support.caches import DictCache
from support.embedders import fake_embedder
from support.openai_server import OpenAIServer

from embedkit_core import ConfigurationError, Embedder, EmbedKitError
from embedkit_core.common.types import Entry
from embedkit_core.testing import FakeServer


def test_a_changed_width_of_a_model_is_reported_and_counted_once():
    with OpenAIServer(dimensions=16) as server:
        cache = DictCache()
        embedder = Embedder("some-model", base_url=server.base_url, api_key="test-key", cache=cache)
        cache.rows[bytes.fromhex(embedder.explain("old").key)] = Entry(np.ones(8, np.float32))
        failed = Embedder(
            "some-model", base_url=server.base_url, api_key="test-key", cache=cache, on_error="return"
        ).embed(["new", "old"])
        usage = failed.usage
        assert usage.texts == usage.cache_hits + usage.sent + usage.coalesced + usage.failed
        with pytest.raises(ConfigurationError, match="two widths"):
            Embedder("some-model", base_url=server.base_url, api_key="test-key", cache=cache).embed(["new", "old"])
        assert len(server.requests) == 1


INVALID_ENTRIES = [
    np.ones(8, np.float32),
    Entry(np.ones((1, 8), np.float32)),
    Entry(np.array(["x"])),
    Entry(np.full(8, np.nan, np.float32)),
    Entry(np.ones(8)),
    None,
]


@pytest.mark.parametrize("entry", INVALID_ENTRIES, ids=range(len(INVALID_ENTRIES)))
def test_an_invalid_entry_of_a_custom_cache_is_a_miss(entry):
    server, cache = FakeServer(), DictCache()
    embedder = fake_embedder(server, cache=cache)
    cache.rows[bytes.fromhex(embedder.explain("one").key)] = entry
    for _ in range(2):
        assert np.array_equal(embedder.embed(["one"]).vectors[0], server.vector("one", server.received[0].body))
    assert len(server.received) == 1


def test_a_custom_cache_cannot_change_the_vectors_of_callers():
    class Scribbler(DictCache):
        def set_many(self, items):
            for _, entry in items:
                entry.vector[:] = 0

    server = FakeServer()
    vector = fake_embedder(server, cache=Scribbler()).embed(["one"]).vectors[0]
    assert np.array_equal(vector, server.vector("one", server.received[0].body))


def test_a_custom_cache_that_embeds_in_set_many_gets_an_error_and_does_not_hang():
    found: list[BaseException] = []

    class Nested(DictCache):
        def set_many(self, items):
            try:
                fake_embedder(FakeServer()).embed(["two"])
            except EmbedKitError as error:
                found.append(error)

    fake_embedder(FakeServer(), cache=Nested()).embed(["one"])
    assert "would wait for the thread it runs on" in str(found[0])


@dataclass
class Unhashable(DictCache):
    """A cache that is equal to others and not hashable."""

    rows: dict[bytes, object] = field(default_factory=dict)


class Cancelling(Unhashable):
    def get_many(self, keys):
        raise RuntimeError("no")

    def set_many(self, items):
        raise asyncio.CancelledError


def test_a_custom_cache_may_be_unhashable_or_fail_and_affects_no_caller():
    server = FakeServer()
    for cache in (Unhashable(), Cancelling(), Unhashable()):
        chosen = fake_embedder(server, cache=cache)
        for _ in range(2):
            vector = chosen.embed(["one"]).vectors[0]
            assert np.array_equal(vector, server.vector("one", server.received[-1].body))
    assert server.billed["one"] == 4


def test_a_cache_that_returns_more_entries_than_requested_counts_nothing_twice():
    class AllEntries(DictCache):
        def get_many(self, keys):
            return dict(self.rows)

    server, store = FakeServer(), AllEntries()
    embedder = fake_embedder(server, cache=store)
    for texts in (["x"], ["x"], ["x", "y"], ["x", "y"]):
        result = embedder.embed(texts, input_type="query")
        assert result.vectors.shape == (len(texts), 8)
    assert embedder.usage.sent == 2
