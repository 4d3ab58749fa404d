"""`ByteStoreCache`: vectors in the byte stores of LangChain."""

import pickle

import numpy as np
import pytest
from langchain_classic.storage import LocalFileStore
from langchain_core.stores import InMemoryByteStore
from support.embedders import fake_embedder

from embedkit_core import ConfigurationError
from embedkit_core.cache import Entry
from embedkit_core.testing import CacheSuite, FakeServer
from langchain_embedkit import ByteStoreCache, EmbedKitEmbeddings

KEYS = [bytes([n]) * 32 for n in range(2)]


class TestInMemoryByteStore(CacheSuite):
    persistent = False

    def make(self, folder):
        return ByteStoreCache(InMemoryByteStore())


class TestLocalFileStore(CacheSuite):
    def make(self, folder):
        return ByteStoreCache(LocalFileStore(folder))


def test_embeddings_read_their_vectors_from_the_store(tmp_path):
    server = FakeServer()
    for n in range(2):
        model = EmbedKitEmbeddings(
            model="fake:model", base_url=server.url, cache=ByteStoreCache(LocalFileStore(tmp_path))
        )
        model.embed_documents(["one", "two"])
        assert model.usage.cache_hits == 2 * n
    assert len(server.received) == 1
    assert all(len(path.name) == 64 for path in tmp_path.iterdir())


def test_a_value_that_another_process_is_writing_or_that_is_damaged_is_a_miss(tmp_path):
    cache = ByteStoreCache(LocalFileStore(tmp_path))
    cache.set_many([(key, Entry(np.ones(8, np.float32))) for key in KEYS])
    file = tmp_path / KEYS[0].hex()
    content = file.read_bytes()
    for n in range(len(content)):
        file.write_bytes(content[:n])
        assert cache.get_many(KEYS).keys() == {KEYS[1]}
    file.write_bytes(pickle.dumps(np.ones(8)))
    assert cache.get_many(KEYS).keys() == {KEYS[1]}
    file.write_bytes((tmp_path / KEYS[1].hex()).read_bytes())
    assert cache.get_many(KEYS).keys() == {KEYS[1]}, "it is the value of another key"


def test_a_byte_store_is_a_tier(tmp_path):
    server, store = FakeServer(), InMemoryByteStore()
    with fake_embedder(server, cache=[tmp_path, ByteStoreCache(store)]) as embedder:
        embedder.embed(["one"])
    assert fake_embedder(server, cache=ByteStoreCache(store)).embed(["one"]).usage.cache_hits == 1


def test_an_object_that_is_no_store_is_refused():
    for store in (None, {}, "folder", InMemoryByteStore):
        with pytest.raises(ConfigurationError, match=r"^store: must be a ByteStore of LangChain \(got "):
            ByteStoreCache(store)


def test_embeddings_with_a_byte_store_are_not_pickled():
    server = FakeServer()
    model = EmbedKitEmbeddings(model="fake:model", base_url=server.url, cache=ByteStoreCache(InMemoryByteStore()))
    with pytest.raises(ConfigurationError, match=r"^cache: an embedder with a cache object or a client cannot be"):
        pickle.dumps(model)
