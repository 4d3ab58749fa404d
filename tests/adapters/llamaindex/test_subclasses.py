"""Subclasses of the LlamaIndex adapter, and the methods of LlamaIndex's base class that it must override."""

import asyncio

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler

from embedkit_core.testing import FakeServer
from llamaindex_embedkit import EmbedKitEmbedding
from llamaindex_embedkit.events import EmbeddingUsageEvent


@pytest.fixture
def fake():
    return FakeServer()


def sent(server):
    return [text for request in server.received for text in request.texts]


class Prefixed(EmbedKitEmbedding):
    """LlamaIndex's documented way to change what is embedded."""

    def _get_query_embedding(self, query):
        return super()._get_query_embedding(f"query: {query}")

    async def _aget_query_embedding(self, query):
        return await super()._aget_query_embedding(f"query: {query}")

    def _get_text_embeddings(self, texts):
        return super()._get_text_embeddings([f"passage: {text}" for text in texts])

    async def _aget_text_embeddings(self, texts):
        return await super()._aget_text_embeddings([f"passage: {text}" for text in texts])


class SyncOnly(EmbedKitEmbedding):
    def _get_query_embedding(self, query):
        return super()._get_query_embedding(f"query: {query}")

    def _get_text_embeddings(self, texts):
        return super()._get_text_embeddings([f"passage: {text}" for text in texts])


class OneByOne(EmbedKitEmbedding):
    def _get_text_embedding(self, text):
        return super()._get_text_embedding(f"passage: {text}")


class EachHook(EmbedKitEmbedding):
    """Overrides the hooks for one text and for a list, as a subclass of LlamaIndex's own classes does."""

    def _get_text_embedding(self, text):
        return super()._get_text_embedding(f"passage: {text}")

    async def _aget_text_embedding(self, text):
        return await super()._aget_text_embedding(f"passage: {text}")

    def _get_text_embeddings(self, texts):
        return super()._get_text_embeddings([f"passage: {text}" for text in texts])

    async def _aget_text_embeddings(self, texts):
        return await super()._aget_text_embeddings([f"passage: {text}" for text in texts])


class TextByText(EachHook):
    def _get_text_embeddings(self, texts):
        return [self._get_text_embedding(text) for text in texts]

    async def _aget_text_embeddings(self, texts):
        return [await self._aget_text_embedding(text) for text in texts]


def made(cls, server, **settings):
    return cls(model="fake:model", base_url=server.url, cache=False, **settings)


@pytest.mark.parametrize("cls", [Prefixed, SyncOnly])
def test_every_public_method_uses_what_a_subclass_overrides(cls, fake):
    model = made(cls, fake)
    vectors = [
        model.get_query_embedding("a"),
        asyncio.run(model.aget_query_embedding("b")),
        model.get_text_embedding("c"),
        asyncio.run(model.aget_text_embedding("d")),
        *model.get_text_embedding_batch(["e", "f"]),
        *asyncio.run(model.aget_text_embedding_batch(["g", "h"])),
    ]
    assert [len(vector) for vector in vectors] == [8] * 8
    assert sent(fake)[:4] == ["query: a", "query: b", "passage: c", "passage: d"]
    assert [sorted(request.texts) for request in fake.received[4:]] == [
        ["passage: e", "passage: f"],
        ["passage: g", "passage: h"],
    ]
    assert model.get_agg_embedding_from_queries(["i", "j"]) != model.get_text_embedding("i")
    assert {"query: i", "query: j"} <= set(sent(fake))


def test_an_index_uses_what_a_subclass_overrides(fake):
    index = VectorStoreIndex.from_documents(
        [Document(text="one"), Document(text="two")], embed_model=made(Prefixed, fake)
    )
    index.as_retriever(similarity_top_k=1).retrieve("which?")
    assert sorted(sent(fake)) == ["passage: one", "passage: two", "query: which?"]


def test_a_batch_uses_the_method_for_one_text_if_only_that_is_overridden(fake):
    model = made(OneByOne, fake)
    model.get_text_embedding_batch(["a", "b"])
    asyncio.run(model.aget_text_embedding_batch(["c"]))
    model.get_query_embedding("d")
    assert sorted(sent(fake)) == ["d", "passage: a", "passage: b", "passage: c"]


@pytest.mark.parametrize("cls", [EachHook, TextByText])
def test_an_overridden_method_that_calls_its_own_in_the_base_class_meets_no_other_override(cls, fake):
    model = made(cls, fake)
    model.get_text_embedding("a")
    asyncio.run(model.aget_text_embedding("b"))
    model.get_text_embedding_batch(["c"])
    asyncio.run(model.aget_text_embedding_batch(["d"]))
    assert sent(fake) == [f"passage: {text}" for text in "abcd"]


def test_a_subclass_of_a_subclass_inherits_what_is_overridden(fake):
    class Named(Prefixed):
        pass

    made(Named, fake).get_query_embedding("a")
    assert sent(fake) == ["query: a"]


class Events(BaseEventHandler):
    events: list = []  # noqa: RUF012 - a pydantic field

    def handle(self, event, **kwargs):
        self.events.append(event)


def test_the_usage_event_counts_what_an_overridden_method_embeds(fake):
    handler = Events(events=[])
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        made(Prefixed, fake).get_text_embedding_batch(["a", "b"])
    finally:
        dispatcher.event_handlers.remove(handler)
    (usage,) = [event.usage for event in handler.events if isinstance(event, EmbeddingUsageEvent)]
    assert (usage.texts, usage.sent) == (2, 2)
