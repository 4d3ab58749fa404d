"""Usage, budgets, events and progress in both frameworks."""

import asyncio
import copy
import io
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent

from embedkit_core import BudgetError, ConfigurationError, PartialFailureError, Usage, track_usage
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbeddingUsageHandler, EmbedKitEmbeddings, get_embedding_usage
from llamaindex_embedkit import EmbedKitEmbedding
from llamaindex_embedkit.events import EmbeddingUsageEvent

PRICE = Decimal("0.02")
REQUESTS = (["one two three four five"], ["six seven eight nine ten"], ["one two", "three four", "five six seven"])
KEY = "sk-not-to-be-seen"


class LangChain:
    """Methods with the same names for both frameworks."""

    def __init__(self, server, **settings):
        self.model = EmbedKitEmbeddings("fake:model", base_url=server.url, **{"cache": False, **settings})

    def many(self, texts):
        return self.model.embed_documents(texts)

    async def amany(self, texts):
        return await self.model.aembed_documents(texts)

    def query(self, text):
        return self.model.embed_query(text)


class LlamaIndex(LangChain):
    def __init__(self, server, **settings):
        self.model = EmbedKitEmbedding("fake:model", base_url=server.url, **{"cache": False, **settings})

    def many(self, texts):
        return self.model.get_text_embedding_batch(texts)

    async def amany(self, texts):
        return await self.model.aget_text_embedding_batch(texts)

    def query(self, text):
        return self.model.get_query_embedding(text)


hosts = pytest.mark.parametrize("host", [LangChain, LlamaIndex])


def in_turn(host, texts):
    host.many(texts)


def on_a_loop(host, texts):
    asyncio.run(host.amany(texts))


def in_a_thread_of_the_loop(host, texts):
    async def run():
        await asyncio.to_thread(host.many, texts)

    asyncio.run(run())


@hosts
@pytest.mark.parametrize("price", [PRICE, None])
@pytest.mark.parametrize("way", [in_turn, on_a_loop, in_a_thread_of_the_loop])
def test_usage_is_exact_in_both_frameworks(host, price, way, tmp_path):
    made = host(FakeServer(usd_per_million=price), cache=tmp_path)
    made.many(["a", "b", "c"])
    with track_usage() as usage:
        for texts in REQUESTS:
            way(made, texts)
        way(made, ["a", "b", "c"])
    assert (usage.tokens, usage.requests, usage.cache_hits) == (17, 3, 3)
    assert usage.cost_usd == (None if price is None else 17 * price / 1_000_000)
    assert made.model.usage.tokens == 20


@hosts
def test_threads_count_only_if_they_are_bound(host):
    made = host(FakeServer())
    with track_usage() as usage, ThreadPoolExecutor(3) as pool:
        list(pool.map(usage.bind(made.query), [f"query {i}" for i in range(9)]))
        list(pool.map(made.query, ["elsewhere"]))
    assert usage.texts == 9


@hosts
def test_a_budget_stops_a_call_and_a_rerun_continues(host, tmp_path):
    server = FakeServer(usd_per_million=Decimal(1_000_000))
    texts = [f"text {i}" for i in range(200)]
    with pytest.raises(BudgetError) as caught:
        host(server, budget_usd=150, cache=tmp_path).many(texts)
    assert 100 < caught.value.spent_usd <= 150
    host(server, budget_usd=caught.value.needed_usd, cache=tmp_path).many(texts)
    assert set(server.billed.values()) == {1}
    with pytest.raises(BudgetError, match="price of fake:model is unknown"):
        host(FakeServer(), budget_usd="0.5").many(["text"])
    assert len(host(FakeServer(), budget_usd=Decimal(1), prices={"fake:model": 1}).many(["text"])) == 1


@hosts
def test_a_budget_cannot_be_pickled_and_is_shared_by_copies(host):
    made = host(FakeServer(usd_per_million=PRICE), budget_tokens=5).model
    with pytest.raises(ConfigurationError, match="budget cannot be pickled"):
        pickle.dumps(made)
    assert copy.deepcopy(made).embedder.budget is made.embedder.budget
    assert copy.copy(made).embedder.budget is made.embedder.budget
    assert made.model_copy(update={"budget_tokens": 7}).embedder.budget.limit_tokens == 7


@hosts
def test_an_estimate_sends_no_request(host, tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    made = host(server, cache=tmp_path)
    made.many(["one", "two"])
    told = made.model.estimate(["one", "two", "three"])
    assert (told.cache_hits, told.texts_to_send) == (2, 1)
    assert asyncio.run(made.model.aestimate(["one", "two", "three"])).cache_hits == 2
    count = made.model.count_tokens("one")
    assert 0 < count == asyncio.run(made.model.acount_tokens(["one"]))
    assert made.model.max_input_tokens is None
    assert len(server.received) == 1


@hosts
def test_progress_is_reported_and_the_frameworks_own_switch_shows_a_bar(host, monkeypatch):
    told = []
    host(FakeServer(), progress=told.append).many(["one", "two"])
    assert (told[-1].done, told[-1].finished) == (2, True)
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    if host is LangChain:
        host(FakeServer(), show_progress_bar=True).many(["one", "two"])
    else:
        host(FakeServer()).model.get_text_embedding_batch(["one", "two"], show_progress=True)
    assert "100%" in shown.getvalue()


@hosts
def test_a_progress_function_is_not_pickled(host):
    made = host(FakeServer(), progress=lambda told: None).model
    assert pickle.loads(pickle.dumps(made)).progress is None
    assert copy.deepcopy(made).progress is made.progress


@hosts
def test_no_usage_error_or_estimate_shows_the_key(host):
    server = FakeServer(usd_per_million=PRICE)
    made = host(server, api_key=KEY, budget_usd=0)
    with track_usage() as usage, pytest.raises(BudgetError) as caught:
        made.many(["a secret text"])
    told = [
        repr(made.model),
        str(made.model),
        repr(usage),
        usage.table(),
        usage.to_json_lines(),
        json.dumps(usage.to_dict()),
    ]
    told += [
        repr(caught.value),
        str(caught.value),
        repr(caught.value.__dict__),
        str(made.model.estimate(["a secret text"])),
    ]
    assert not [text for text in told if KEY in text or "secret text" in text]


# LangChain


def test_get_embedding_usage_has_the_shape_of_langchain():
    server = FakeServer(usd_per_million=PRICE)
    model = EmbedKitEmbeddings("fake:model", base_url=server.url, cache=False)
    with get_embedding_usage() as usage:
        model.embed_documents(["one two three"])
        model.embed_query("four five")
    assert usage.usage_metadata == {"fake:model": {"input_tokens": 5, "output_tokens": 0, "total_tokens": 5}}
    assert usage.cost_usd == 5 * PRICE / 1_000_000
    with pytest.raises(BudgetError), get_embedding_usage(budget_tokens=1):
        model.embed_query("far more than that")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_counts_the_embeddings_of_its_runs(is_async):
    server = FakeServer(usd_per_million=PRICE)
    model = EmbedKitEmbeddings("fake:model", base_url=server.url, cache=False)

    async def embed(text):
        return await model.aembed_query(text)

    step = RunnableLambda(model.embed_query, afunc=embed)
    chain = RunnableParallel(one=step, other=RunnableLambda(lambda text: model.embed_documents([text])))
    handler, other = EmbeddingUsageHandler(), EmbeddingUsageHandler()
    config = RunnableConfig(callbacks=[handler])
    if is_async:
        asyncio.run(chain.ainvoke("one two three", config=config))
    else:
        chain.invoke("one two three", config=config)
        chain.batch(["four", "five"], config={"callbacks": [other]})
    assert handler.usage_metadata == {"fake:model": {"input_tokens": 6, "output_tokens": 0, "total_tokens": 6}}
    assert handler.usage.texts == 2
    assert handler.usage.cost_usd == 6 * PRICE / 1_000_000
    assert other.usage.texts == (0 if is_async else 4)


def test_a_handler_counts_a_failed_call():
    server = FakeServer()
    server.rejected_texts.add("bad")
    model = EmbedKitEmbeddings("fake:model", base_url=server.url, cache=False)
    handler = EmbeddingUsageHandler()
    with pytest.raises(PartialFailureError):
        RunnableLambda(model.embed_documents).invoke(["good", "bad"], config={"callbacks": [handler]})
    assert (handler.usage.sent, handler.usage.failed) == (1, 1)


def test_a_run_without_callbacks_works():
    server = FakeServer()
    model = EmbedKitEmbeddings("fake:model", base_url=server.url, cache=False)
    assert len(RunnableLambda(model.embed_query).invoke("text")) == 8


# LlamaIndex


class Heard(BaseEventHandler):
    events: list = []  # noqa: RUF012 - a pydantic field

    @classmethod
    def class_name(cls):
        return "Heard"

    def handle(self, event, **kwargs):
        self.events.append(event)


@pytest.fixture
def heard():
    handler = Heard(events=[])
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler.events
    dispatcher.event_handlers.remove(handler)


def kinds(events):
    return [type(e) for e in events if isinstance(e, (EmbeddingStartEvent, EmbeddingEndEvent, EmbeddingUsageEvent))]


def usages(events):
    return [event.usage for event in events if isinstance(event, EmbeddingUsageEvent)]


WHOLE = [EmbeddingStartEvent, EmbeddingEndEvent, EmbeddingUsageEvent]


def test_each_call_has_its_events_and_one_of_its_usage(heard, tmp_path):
    counter = TokenCountingHandler()
    server = FakeServer(usd_per_million=PRICE)
    model = EmbedKitEmbedding(
        "fake:model", base_url=server.url, cache=tmp_path, callback_manager=CallbackManager([counter])
    )
    model.get_text_embedding_batch(["one two", "three"])
    model.get_text_embedding_batch(["one two", "four"])
    assert kinds(heard) == WHOLE * 2
    assert usages(heard) == [
        Usage(texts=2, sent=2, requests=1, tokens=3, priced_usd=3 * PRICE / 1_000_000),
        Usage(texts=2, cache_hits=1, sent=1, requests=1, tokens=1, priced_usd=PRICE / 1_000_000),
    ]
    second = usages(heard)[1]
    assert second.saved_usd == second.saved_tokens * PRICE / 1_000_000 > 0
    assert counter.total_embedding_token_count > 0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failed_call_has_its_events(heard, is_async):
    server = FakeServer()
    model = EmbedKitEmbedding("fake:model", base_url=server.url, cache=False, budget_tokens=0)

    def embed():
        if is_async:
            asyncio.run(model.aget_text_embedding_batch(["one two"]))
        else:
            model.get_text_embedding_batch(["one two"])

    with pytest.raises(BudgetError):
        embed()
    assert kinds(heard) == WHOLE
    assert usages(heard)[0].failed == 1


def test_a_cancelled_call_has_its_events_without_usage(heard):
    server = FakeServer()
    model = EmbedKitEmbedding("fake:model", base_url=server.url, cache=False)
    server.hold()

    async def leave():
        task = asyncio.create_task(model.aget_text_embedding_batch(["one"]))
        await asyncio.to_thread(server.wait_for_requests, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    server.release()
    assert kinds(heard) == WHOLE
    assert usages(heard) == [None]


def test_budgets_and_prices_do_not_change_the_dictionary_of_llamaindex():
    server = FakeServer(usd_per_million=PRICE)
    plain = EmbedKitEmbedding("fake:model", base_url=server.url, cache=False)
    bounded = EmbedKitEmbedding(
        "fake:model", base_url=server.url, cache=False, budget_usd=1, prices={"m": 1}, progress=lambda told: None
    )
    assert plain.to_dict() == bounded.to_dict()
