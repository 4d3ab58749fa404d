"""Budgets are never exceeded: by many callers, retries, lost replies or several models."""

import asyncio
import copy
import pickle
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import fake_embedder, openai_embedder
from support.openai_server import Fault, OpenAIServer
from support.rows import check_rows

from embedkit_core import (
    BadReplyError,
    BudgetError,
    ConfigurationError,
    Embedder,
    TimedOutError,
    UnavailableError,
    track_usage,
)
from embedkit_core.costs import prices
from embedkit_core.testing import FakeServer, fake_vector
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

PRICE = Decimal(1_000_000)  # one dollar per token


def texts_of(n):
    return [f"text number {i}" for i in range(n)]


def test_a_budget_is_never_exceeded_and_a_rerun_sends_the_rest(tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    texts = texts_of(400)
    embedder = fake_embedder(server, budget_usd=500, cache=tmp_path)
    with pytest.raises(BudgetError) as caught:
        embedder.embed(texts)
    error = caught.value
    billed = sum(len(text.split()) * times for text, times in server.billed.items())
    assert billed == error.spent_usd <= error.limit_usd == 500
    assert set(error.failed) | set(error.succeeded) == set(range(400))
    assert len(error.failed) * 3 <= error.needed_usd
    for place in error.succeeded:
        vector = fake_vector(texts[place], role="document", model="model")
        assert np.array_equal(error.result.vectors[place], vector)
    assert "a rerun sends only the rest" in str(error)
    usage = fake_embedder(server, budget_usd=error.needed_usd, cache=tmp_path).embed(texts).usage
    assert usage.cache_hits == len(error.succeeded)
    assert set(server.billed.values()) == {1}


def test_a_token_budget_needs_no_price():
    server = FakeServer()
    with pytest.raises(BudgetError, match=r"has \d+ left, but a text may need up to \d+ tokens\. Increase") as caught:
        fake_embedder(server, budget_tokens=100).embed(texts_of(100))
    assert sum(server.billed.values()) * 3 == caught.value.spent_tokens <= 100
    assert caught.value.needed_usd is None


def test_an_unknown_price_is_refused_before_the_first_request_and_hits_are_served(tmp_path):
    server = FakeServer()
    fake_embedder(server, cache=tmp_path).embed(["kept"])
    embedder = fake_embedder(server, budget_usd=1, cache=tmp_path)
    assert embedder.embed(["kept"]).usage.cache_hits == 1
    with pytest.raises(
        BudgetError, match=r"budget_usd: the price of fake:model is unknown.*prices=\{'fake:model': 0\.02\}"
    ) as caught:
        embedder.embed(["kept", "new"])
    assert list(caught.value.failed) == [1]
    assert caught.value.result.usage.cache_hits == 1
    assert len(server.received) == 1
    assert fake_embedder(server, budget_usd=1, prices={"model": "0.02"}).embed(["new"]).usage.sent == 1


def test_a_price_that_is_not_from_the_provider_is_estimated_with_and_refused_by_a_budget():
    info = {"usd_per_million": "0.10", "confirmed": False}
    settings = {"model": "openai:m", "api_key": "k", "base_url": "http://localhost:1/v1", "cache": False}
    estimate = Embedder(**settings, model_info=info, budget_usd=1).estimate(["a text"])
    assert (estimate.cost_usd > 0, estimate.price_source) == (True, "catalogue, unconfirmed")
    with pytest.raises(BudgetError, match=r"from another source than the provider \(\$0\.1 per .* nothing was sent"):
        Embedder(**settings, model_info=info, budget_usd=1).embed(["a text"])
    assert Embedder(**settings, model_info=info, prices={"m": "0.10"}).price.is_confirmed


def test_a_free_model_works_with_a_budget_of_zero():
    assert fake_embedder(FakeServer(usd_per_million=Decimal(0)), budget_usd=0).embed(texts_of(100)).usage.sent == 100


def test_possibly_billed_tokens_stay_spent():
    server = FakeServer(usd_per_million=PRICE)
    most = len("one text") + 4
    server.faults.append(TimedOutError("no answer", retry_after=0.001))
    embedder = fake_embedder(server, budget_usd=most + 3)
    with pytest.raises(BudgetError) as caught:
        embedder.embed(["one text"])
    assert caught.value.spent_usd == most
    assert caught.value.usage.possibly_billed_usd == most
    assert len(server.received) == 1


def with_bill(tokens, **changes):
    def changed(reply):
        return {**reply, **changes, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    return lambda texts, number: Fault(transform=changed)


@pytest.mark.parametrize("bill", [0, 2**64 - 1])
def test_a_bill_that_the_texts_cannot_have_is_counted_as_possibly_billed(bill):
    """If believed, a bill of 0 would never use up a budget, and 2**64 - 1 tokens would exhaust it at once."""
    with OpenAIServer() as server:
        server.fault_for(with_bill(bill))
        embedder = openai_embedder(server, budget_tokens=30)
        for text in ("a b c", "d e f", "g h i"):  # at most 9 tokens each
            embedder.embed([text])
        with pytest.raises(BudgetError, match="has 3 left"):
            embedder.embed(["j k l"])
        assert (embedder.usage.tokens, embedder.usage.possibly_billed_tokens) == (0, 27)
        assert len(server.requests) == 3


def test_a_bill_of_an_unusable_reply_that_the_texts_cannot_have_is_counted_as_possibly_billed():
    with OpenAIServer() as server:
        server.fault_for(with_bill(10**12, data=[]))
        embedder = openai_embedder(server, budget_tokens=30)
        with pytest.raises(BadReplyError):
            embedder.embed(["a b c"])
        assert (embedder.usage.tokens, embedder.usage.possibly_billed_tokens) == (0, 18)  # base64, then numbers


def test_a_bill_of_0_is_no_bill_without_a_price_and_a_budget():
    with OpenAIServer(api_key=None) as server:
        server.fault_for(with_bill(0))
        assert openai_embedder(server, "new-model").embed(["a"]).usage.possibly_billed_tokens == 0


def test_a_bill_of_a_prompt_that_the_server_adds_is_believed_without_a_budget():
    with OpenAIServer(api_key=None) as server:
        server.fault_for(with_bill(300))
        assert openai_embedder(server, "new-model").embed(["a"]).usage.tokens == 300
        server.fault_for(with_bill(2**64 - 1))
        assert openai_embedder(server, "new-model").embed(["b"]).usage.tokens == 0


def test_a_refusal_costs_nothing():
    with OpenAIServer() as server:
        server.faults.extend([Fault.rate_limited(retry_after_ms=1)] * 3)
        usage = openai_embedder(server, budget_usd="0.00000066").embed(["a text of some length"]).usage
        assert (usage.requests, usage.possibly_billed_tokens) == (4, 0)


def test_a_budget_is_shared_by_all_calls_of_an_embedder_and_its_copies():
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, budget_usd=40)
    embedder.embed(["one two"])
    copy.copy(embedder).embed(["three four"])
    copy.deepcopy(embedder).without_cache().embed(["five six"])
    assert embedder.budget.spent_usd == 6
    with pytest.raises(ConfigurationError, match="budget cannot be pickled"):
        pickle.dumps(embedder)


def test_the_budget_of_a_block_covers_all_models():
    server, other = FakeServer(usd_per_million=PRICE), FakeServer(usd_per_million=PRICE)

    def spend():
        for i in range(100):
            fake_embedder(server).embed([f"text {i}"])
            fake_embedder(other).embed([f"text {i}"])

    with track_usage(budget_usd=100) as usage, pytest.raises(BudgetError):
        spend()
    assert 80 < usage.cost_usd <= 100
    assert abs(sum(server.billed.values()) - sum(other.billed.values())) <= 1


async def test_budget_released_by_another_account_is_used():
    server, other = FakeServer(usd_per_million=PRICE), FakeServer(usd_per_million=PRICE)
    one, two = fake_embedder(server), fake_embedder(other)
    most = len("text") + 4
    server.hold()
    with track_usage(budget_usd=most + 3) as usage:
        first = asyncio.create_task(one.aembed(["text"]))
        await asyncio.to_thread(server.wait_for_requests, 1)
        second = asyncio.create_task(two.aembed(["text"]))  # nothing is left for it until the first one's bill
        await asyncio.to_thread(lambda: None)
        server.release()
        await asyncio.gather(first, second)
    assert usage.cost_usd == 2


async def test_a_caller_without_budget_is_served_by_a_coalesced_request_of_another():
    server = FakeServer(usd_per_million=PRICE)
    limited, unlimited = fake_embedder(server, budget_usd=5), fake_embedder(server)
    server.hold()
    first = asyncio.create_task(unlimited.aembed(["another"]))
    await asyncio.to_thread(server.wait_for_requests, 1)
    calls = asyncio.gather(limited.aembed(["a long text"]), unlimited.aembed(["a long text"]), return_exceptions=True)
    server.release()
    results = await calls
    await first
    assert results[1].usage.failed == 0
    assert not isinstance(results[0], BudgetError) or results[1].usage.sent == 1


class LossyServer(FakeServer):
    """Accepts ten words at most, and loses the reply to its second request."""

    def __init__(self, **options):
        super().__init__(max_words=10, **options)
        self.fault_for = lambda texts: UnavailableError("lost", retry_after=0.001) if len(self.received) == 2 else None


@pytest.mark.parametrize("tokens", [303, 309, 327])
def test_chunks_that_cannot_all_be_paid_for_do_not_affect_other_callers(tokens):
    """A refused chunk fails the text, also if one request holds several of its chunks."""
    server = LossyServer()
    limited = fake_embedder(server, budget_tokens=tokens, on_long_text="mean")
    with pytest.raises(BudgetError):
        limited.embed([" ".join(["aa"] * 100)])
    assert not limited.budget.reserved_tokens
    assert fake_embedder(server).embed(["somebody else's"]).usage.sent == 1
    assert limited.embed(["x"]).usage.sent == 1 or limited.budget.left_tokens < 5


async def test_a_caller_with_budget_completes_the_chunks_that_others_cannot_pay_for():
    server = FakeServer(max_words=10)
    limited = fake_embedder(server, budget_tokens=304, on_long_text="mean")
    unlimited = fake_embedder(server, on_long_text="mean")
    unlimited.embed(["warm up"])
    text = " ".join(["aa"] * 100)
    server.fault_for = lambda texts: server.hold() if len(texts) == 1 else None
    calls = asyncio.create_task(limited.aembed([text]))
    await asyncio.to_thread(server.wait_for_requests, 3)  # most pieces are in the air, the others wait for money
    joined = asyncio.create_task(unlimited.aembed([text]))
    await asyncio.to_thread(server.wait_for_requests, 4)
    server.release()
    assert np.array_equal((await calls).vectors, (await joined).vectors)


def test_the_error_states_the_remaining_budget_at_the_end_of_the_call():
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, budget_usd=500)
    with pytest.raises(BudgetError, match=r"The budget of \$500 has \$320\.00 left") as caught:
        embedder.embed(["x" * 600, *texts_of(60)])
    assert caught.value.spent_usd == caught.value.usage.cost_usd == 180
    assert {error.spent_usd for error in caught.value.failed.values()} == {180}


@pytest.mark.parametrize("adapter", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_a_changed_copy_of_an_adapter_spends_the_same_budget(adapter):
    server = FakeServer()
    model = adapter(model="fake:model", base_url=server.url, cache=False, budget_tokens=40)
    changed = model.model_copy(update={"max_retries": 2})
    assert changed.embedder.budget is model.embedder.budget
    assert changed.embedder.settings.max_retries == 2
    more = model.model_copy(update={"budget_tokens": 50})
    assert (more.embedder.budget.limit_tokens, more.embedder.budget.spent_tokens) == (50, 0)


def test_a_key_function_that_fails_costs_nothing():
    with OpenAIServer() as server:
        tries = iter(range(10))

        def key():
            if next(tries) < 3:
                raise OSError("the vault is down")
            return server.api_key

        embedder = openai_embedder(server, api_key=key, budget_tokens=40, max_retries=5)
        assert embedder.embed(["a text of some length"]).usage.sent == 1
        assert embedder.budget.unconfirmed_tokens == 0
        assert embedder.usage.possibly_billed_tokens == 0


def test_a_stream_ends_when_the_budget_is_spent(tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    rows = fake_embedder(server, budget_usd=100, cache=tmp_path).embed_iter(iter(texts_of(1000)))
    given_rows = []
    with pytest.raises(BudgetError) as caught:
        given_rows.extend(rows)
    assert len(given_rows) == len(caught.value.succeeded) > 20
    truth = [fake_vector(text, role="document", model="model") for text in texts_of(len(given_rows))]
    assert np.array_equal(given_rows, truth)


def test_budget_errors_are_returned_with_on_error_return():
    server = FakeServer(usd_per_million=PRICE)
    result = fake_embedder(server, budget_usd=50, on_error="return").embed(texts_of(20))
    assert all(isinstance(error, BudgetError) for error in result.failed.values())
    assert 0 < len(result.failed) < 20
    assert np.isnan(result.vectors[list(result.failed)]).all()


def test_an_invalid_budget_is_refused():
    def check(value):
        with pytest.raises(ConfigurationError, match="budget_usd="):
            fake_embedder(FakeServer(), budget_usd=value)
        with pytest.raises(ConfigurationError, match="budget_usd="):
            track_usage(budget_usd=value)

    check_rows([-1, "much", float("nan"), float("inf"), True, [1]], check)


def test_an_invalid_price_is_refused():
    def check(given):
        with pytest.raises(ConfigurationError, match="prices"):
            fake_embedder(FakeServer(), prices=given)

    check_rows([{"m": -1}, {"m": "cheap"}, {"m": None}, {"m": True}, ["m"]], check)


def test_an_unknown_argument_of_track_usage_is_refused_with_the_right_one():
    with pytest.raises(
        ConfigurationError, match=r"track_usage takes no argument 'budget'; did you mean 'budget_usd'\?"
    ):
        track_usage(budget=1)


@pytest.mark.parametrize(
    "name",
    [
        "openai:text-embeding-3-small",
        "openai/text-embedding-3-small",
        "Text-Embedding-3-Small",
        "text-embedding-3-smal",
    ],
)
def test_a_misspelled_name_in_prices_is_logged_once(name, caplog):
    prices.warn_of_name.cache_clear()
    for _ in range(2):
        embedder = Embedder("openai:text-embedding-3-small", api_key="unused", prices={name: 5}, cache=False)
        assert embedder.price.source == "catalogue"
    [line] = caplog.messages
    assert line.startswith(f"prices: {name!r} is no name of this model")
    assert "text-embedding-3-small'?" in line


def test_names_of_other_models_in_prices_are_no_misspelling(caplog):
    others = [
        "openai:text-embedding-3-large",
        "text-embedding-4-small",
        "voyage:voyage-4",
        "my-model",
        "openai:my-model",
    ]
    Embedder("openai:text-embedding-3-small", api_key="unused", prices=dict.fromkeys(others, 5), cache=False)
    assert caplog.messages == []


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=20), min_size=1, max_size=6),
    st.integers(0, 400),
    st.lists(st.sampled_from(["timeout", "lost", "503", "done", ""]), max_size=20),
)
def test_no_interleaving_of_callers_and_failures_exceeds_a_budget(calls, dollars, faults):
    """The bill of the server is at most the known plus the possibly billed cost."""
    server = FakeServer(usd_per_million=PRICE)
    lost_tokens = 0

    def fault_for(texts):
        nonlocal lost_tokens
        kind = faults.pop() if faults else ""
        if kind == "done":  # the work is done and the reply is lost
            lost_tokens += sum(len(text.split()) for text in texts)
        return {
            "timeout": TimedOutError("no answer", retry_after=0.001),
            "lost": UnavailableError("connection lost", retry_after=0.001),
            "done": TimedOutError("no answer", retry_after=0.001),
            "503": UnavailableError("overloaded", status=503, retry_after=0.001),
        }.get(kind)

    server.fault_for = fault_for
    embedder = fake_embedder(server, budget_usd=dollars, max_retries=2, on_error="return")

    async def run():
        return await asyncio.gather(*(embedder.aembed([f"text {i}" for i in call]) for call in calls))

    results = asyncio.run(run())
    known = sum(result.usage.cost_usd for result in results)
    possible = sum(result.usage.possibly_billed_usd for result in results)
    billed = sum(len(text.split()) * times for text, times in server.billed.items())
    assert known == billed
    assert billed + lost_tokens <= known + possible <= dollars
    assert (embedder.budget.spent_usd, embedder.budget.unconfirmed_usd) == (known, possible)
    assert embedder.budget.reserved_usd == 0
