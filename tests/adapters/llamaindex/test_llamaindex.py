"""The LlamaIndex class: methods, hashes, dictionaries and events."""

import asyncio
import json
from decimal import Decimal

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import SimilarityMode
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import Field
from support.embedders import copied_model, needs_local_model, numbered
from support.openai_server import vector_of

from embedkit_core import AuthenticationError, InputError, PartialFailureError, Usage
from embedkit_core.testing import FakeServer, fake_vector
from llamaindex_embedkit import EmbeddingUsageEvent, EmbedKitEmbedding

OPENAI = "openai:text-embedding-3-small"


def index_model(server, **options):
    return EmbedKitEmbedding(
        **{"model": OPENAI, "base_url": server.base_url, "api_key": "test-key", "cache": False, **options}
    )


def asymmetric(server, **options):
    return EmbedKitEmbedding(model="fake:any", base_url=server.url, cache=False, **options)


def nodes(n):
    return [TextNode(text=text, metadata={"page": i}) for i, text in enumerate(numbered(n))]


def document(text):
    return fake_vector(text, role="document", model="any").tolist()


def query(text):
    return fake_vector(text, role="query", model="any").tolist()


async def test_every_method_returns_the_vectors_of_the_core():
    server = FakeServer()
    model = asymmetric(server)
    assert model.get_text_embedding("a") == document("a")
    assert model.get_text_embedding_batch(["a", "b"]) == [document("a"), document("b")]
    assert model.get_text_embedding_batch(["a"], show_progress=True) == [document("a")]
    assert model.get_query_embedding("a") == query("a")
    assert model.get_agg_embedding_from_queries(["a"]) == query("a")
    mean = np.mean([query("a"), query("b")], axis=0)
    np.testing.assert_allclose(model.get_agg_embedding_from_queries(["a", "b"]), mean)
    assert model.get_agg_embedding_from_queries(["a", "b"], agg_fn=lambda rows: rows[1]) == query("b")
    assert await model.aget_text_embedding("a") == document("a")
    assert await model.aget_text_embedding_batch(["a", "b"]) == [document("a"), document("b")]
    assert await model.aget_text_embedding_batch(["a"], show_progress=True) == [document("a")]
    assert await model.aget_query_embedding("a") == query("a")
    assert await model.aget_agg_embedding_from_queries(["a"]) == query("a")
    np.testing.assert_allclose(await model.aget_agg_embedding_from_queries(["a", "b"]), mean)
    assert await model.aget_agg_embedding_from_queries(["a", "b"], agg_fn=lambda rows: rows[1]) == query("b")


async def test_nodes_get_the_vector_of_their_text_with_metadata():
    model = asymmetric(FakeServer())
    truth = [document(node.get_content(metadata_mode=MetadataMode.EMBED)) for node in nodes(3)]
    assert [node.embedding for node in model(nodes(3))] == truth
    assert [node.embedding for node in await model.acall(nodes(3))] == truth


def test_similarity_is_that_of_llamaindex(server):
    model = index_model(server)
    one, other = model.get_text_embedding_batch(["a", "b"])
    assert model.similarity(one, one) == pytest.approx(1)
    assert model.similarity(one, other) == pytest.approx(float(vector_of("a") @ vector_of("b")), abs=1e-6)
    assert model.similarity(one, one, mode=SimilarityMode.EUCLIDEAN) == 0


async def test_every_value_is_a_python_float_and_the_vectors_are_json(server):
    model = index_model(server)
    rows = [
        model.get_query_embedding("a"),
        await model.aget_text_embedding("a"),
        *model.get_text_embedding_batch(["a", "b"]),
        *await model.aget_text_embedding_batch(["a", "b"]),
        model.get_agg_embedding_from_queries(["a", "b"]),
    ]
    assert {type(number) for row in rows for number in row} == {float}
    assert json.loads(json.dumps(rows)) == rows


async def test_a_batch_is_one_call_of_the_core_for_every_embed_batch_size(server):
    model = index_model(server)
    assert model.embed_batch_size == 10
    assert model.get_text_embedding_batch(numbered(25)) == [vector_of(text).tolist() for text in numbered(25)]
    assert len(server.requests) == 1
    await model.aget_text_embedding_batch([f"async {text}" for text in numbered(25)])
    assert len(server.requests) == 2
    await index_model(server, num_workers=4).acall(nodes(25))
    assert model.get_text_embedding_batch([]) == await model.aget_text_embedding_batch([]) == []
    assert len(server.requests) == 3


@pytest.mark.parametrize("use_async", [False, True])
async def test_an_index_finds_the_right_node(server, use_async):
    index = VectorStoreIndex(nodes(30), embed_model=index_model(server), use_async=use_async)
    retriever = index.as_retriever(similarity_top_k=2)
    asked = nodes(30)[7].get_content(metadata_mode=MetadataMode.EMBED)
    for found in (retriever.retrieve(asked), await retriever.aretrieve(asked)):
        assert (found[0].text, found[0].score) == (nodes(30)[7].text, pytest.approx(1))


class Unlimited:
    def acquire(self): ...

    def __repr__(self):
        return "Unlimited()"


SAME = [{"timeout": 5.0}, {"max_retries": 1}, {"embed_batch_size": 50}, {"num_workers": 3}, {"cache": "elsewhere"},
        {"api_key": "other"}, {"max_concurrency": 2}, {"max_batch_texts": 5}, {"rate_limiter": Unlimited()},
        {"pickle_api_key": True}, {"model": "text-embedding-3-small"}, {"dimensions": 1536}]  # fmt: skip
OTHER = [{"model": "openai:text-embedding-3-large"}, {"dimensions": 8}, {"document_prompt": "d: "},
         {"on_long_text": "mean"}, {"provider_options": {"user": "u"}}]  # fmt: skip


@pytest.mark.parametrize("change", [*SAME, *OTHER], ids=repr)
def test_the_transformation_hash_changes_only_with_what_changes_vectors(server, change):
    one, other = (get_transformation_hash(nodes(2), index_model(server, **options)) for options in ({}, change))
    assert (one == other) == (change in SAME)


def test_the_transformation_hash_changes_with_a_base_url_from_the_environment(monkeypatch):
    hashes = set()
    for address in ("http://localhost:1/v1", "http://localhost:2/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        hashes.add(get_transformation_hash(nodes(2), EmbedKitEmbedding(model=OPENAI, api_key="k", cache=False)))
    assert len(hashes) == 2


def test_the_transformation_hash_does_not_depend_on_the_order_of_options(server):
    one, other = ({"user": "u", "dimension_hint": 1}, {"dimension_hint": 1, "user": "u"})
    assert get_transformation_hash(nodes(2), index_model(server, provider_options=one)) == get_transformation_hash(
        nodes(2), index_model(server, provider_options=other)
    )


@needs_local_model
def test_the_transformation_hash_changes_with_the_files_of_a_local_model():
    with copied_model(prompts={"query": "q: "}) as folder:
        before = get_transformation_hash(nodes(2), EmbedKitEmbedding(model=f"local:{folder}", cache=False))
        config = folder / "config_sentence_transformers.json"
        config.write_text(config.read_text().replace("q: ", "Q: "))
        assert get_transformation_hash(nodes(2), EmbedKitEmbedding(model=f"local:{folder}", cache=False)) != before


def test_the_ingestion_cache_hits_with_a_new_key_and_misses_with_new_dimensions(server):
    """The embedder has no cache: LlamaIndex finds the entries of its own cache by `to_dict()`."""
    hosts_cache = IngestionCache()

    def run(**options):
        pipeline = IngestionPipeline(transformations=[index_model(server, **options)], cache=hosts_cache)
        return [len(node.embedding) for node in pipeline.run(nodes=fixed)]

    fixed = nodes(3)
    assert run() == [1536] * 3
    server.api_key = "rotated"
    assert run(api_key="rotated", timeout=5.0, max_concurrency=2) == [1536] * 3
    assert len(server.requests) == 1
    assert run(api_key="rotated", dimensions=64) == [64] * 3
    assert run(api_key="rotated", document_prompt="d: ") == [1536] * 3
    assert len(server.requests) == 3


class Refusing(SimpleKVStore):
    """A store that must not be used."""

    def get(self, key, collection="data"):
        raise AssertionError("the embeddings_cache was consulted")

    put = aget = aput = get


async def test_an_embeddings_cache_is_never_used_and_causes_a_warning(server):
    with pytest.warns(UserWarning, match="embeddings_cache is not used"):
        model = index_model(server, embeddings_cache=Refusing())
    assert model.embeddings_cache is None
    model.embeddings_cache = Refusing()  # as the framework or a user can do later
    rows = [model.get_text_embedding("a"), model.get_query_embedding("a"), *model.get_text_embedding_batch(["a"])]
    rows += [await model.aget_text_embedding("a"), await model.aget_query_embedding("a")]
    rows += await model.aget_text_embedding_batch(["a"])
    assert rows == [vector_of("a").tolist()] * 6


def test_a_model_made_from_its_dictionary_is_equal(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    model = index_model(server, dimensions=64, query_prompt="q: ")
    for other in (EmbedKitEmbedding.from_dict(model.to_dict()), EmbedKitEmbedding.from_json(model.to_json())):
        assert other.to_dict() == model.to_dict()
        assert other.embedder.explain("a").key == model.embedder.explain("a").key


# Events


class Heard(BaseEventHandler):
    """The received events of LlamaIndex's instrumentation."""

    events: list = Field(default_factory=list)

    def handle(self, event, **kwargs):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if type(event) is kind]


class Called(BaseCallbackHandler):
    """The received callbacks, by event id."""

    def __init__(self):
        super().__init__([], [])
        self.started, self.ended = {}, {}

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **kwargs):
        self.started[event_id] = (event_type, payload)
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **kwargs):
        assert event_id not in self.ended
        self.ended[event_id] = (event_type, payload)

    def start_trace(self, trace_id=None): ...

    def end_trace(self, trace_id=None, trace_map=None): ...


@pytest.fixture
def heard():
    handler = Heard()
    get_dispatcher().add_event_handler(handler)
    yield handler
    get_dispatcher().event_handlers.remove(handler)


METHODS = {
    "get_text_embedding": ("x",),
    "get_query_embedding": ("x",),
    "get_text_embedding_batch": (["x", "y"],),
    "get_agg_embedding_from_queries": (["x", "y"],),
}
METHODS |= {f"a{name}": arguments for name, arguments in METHODS.items()}


async def call(model, method):
    found = getattr(model, method)(*METHODS[method])
    return await found if method.startswith("a") else found


@pytest.mark.parametrize("method", METHODS)
async def test_each_start_event_has_an_end_event_with_texts_and_vectors(server, heard, method):
    called = Called()
    await call(index_model(server, callback_manager=CallbackManager([called])), method)
    texts = list(METHODS[method][0])
    [start], [end] = heard.of(EmbeddingStartEvent), heard.of(EmbeddingEndEvent)
    assert start.model_dict == {"class_name": "EmbedKitEmbedding", "model_name": OPENAI, "embed_batch_size": 10}
    assert (end.chunks, end.embeddings) == (texts, [vector_of(text).tolist() for text in texts])
    assert EmbeddingEndEvent.model_validate(end.model_dump(exclude={"class_name"})) == end
    assert called.started.keys() == called.ended.keys()
    [(kind, payload)] = called.ended.values()
    assert (kind, payload[EventPayload.CHUNKS]) == (CBEventType.EMBEDDING, texts)
    assert payload[EventPayload.EMBEDDINGS] == end.embeddings


@pytest.mark.parametrize("method", METHODS)
async def test_each_start_event_has_an_end_event_if_the_call_fails(server, heard, method):
    called = Called()
    with pytest.raises(AuthenticationError):
        await call(index_model(server, api_key="wrong", callback_manager=CallbackManager([called])), method)
    [_], [end] = heard.of(EmbeddingStartEvent), heard.of(EmbeddingEndEvent)
    assert (end.chunks, end.embeddings) == (list(METHODS[method][0]), [])
    assert len(called.started) == 1
    assert called.started.keys() == called.ended.keys()


async def test_each_start_event_has_an_end_event_if_the_call_is_cancelled(server, heard):
    server.hold()
    work = asyncio.create_task(index_model(server).aget_text_embedding_batch(["x"]))
    await asyncio.to_thread(server.wait_for_requests, 1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    server.release()
    assert [len(heard.of(kind)) for kind in (EmbeddingStartEvent, EmbeddingEndEvent)] == [1, 1]


@pytest.mark.parametrize("method", METHODS)
async def test_each_call_has_one_usage_event_with_billed_tokens_and_cache_hits(server, tmp_path, heard, method):
    model = index_model(server, cache=tmp_path)
    await call(model, method)
    await call(model, method)
    first, second = heard.of(EmbeddingUsageEvent)
    n = len(METHODS[method][0])
    assert first.usage == Usage(texts=n, sent=n, requests=1, tokens=n, priced_usd=n * Decimal("0.00000002"))
    assert second.usage == Usage(texts=n, cache_hits=n)
    assert (first.model, first.input_type) == (OPENAI, "query" if "quer" in method else "document")
    assert first.model_dump()["usage"]["tokens"] == n


@pytest.mark.parametrize("method", METHODS)
async def test_a_failed_call_has_one_usage_event(server, heard, method):
    with pytest.raises(AuthenticationError) as failed:
        await call(index_model(server, api_key="wrong"), method)
    [event] = heard.of(EmbeddingUsageEvent)
    n = len(METHODS[method][0])
    assert event.usage == failed.value.usage == Usage(texts=n, failed=n, requests=1)


def test_a_partial_failure_has_one_usage_event(server, heard):
    server.rejected_texts.add("bad")
    with pytest.raises(PartialFailureError) as failed:
        index_model(server).get_text_embedding_batch(["fine", "bad", "fine too"])
    [event] = heard.of(EmbeddingUsageEvent)
    assert event.usage == failed.value.usage == failed.value.result.usage
    assert (event.usage.sent, event.usage.failed) == (2, 1)
    with pytest.raises(InputError):
        index_model(server).get_text_embedding_batch(["fine", " "])
    assert heard.of(EmbeddingUsageEvent)[1].usage is None


def test_the_token_counter_of_llamaindex_counts(server):
    counter = TokenCountingHandler(tokenizer=str.split)
    model = index_model(server, callback_manager=CallbackManager([counter]))
    model.get_text_embedding_batch(["two words", "and three words"])
    model.get_agg_embedding_from_queries(["one"])
    assert counter.total_embedding_token_count == 6
