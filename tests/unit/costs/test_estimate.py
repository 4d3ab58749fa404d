"""Estimates of cost, tokens, requests and time, compared with the actual usage."""

import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from support.embedders import copied_model, fake_embedder, needs_local_model, numbered, openai_embedder
from support.openai_server import OpenAIServer
from support.virtual import LIMITS, Simulation, VirtualServer

from embedkit_core import Embedder, InputError
from embedkit_core.calls.estimate import TEXTS_PER_CHUNK
from embedkit_core.common.money import THIS_MACHINE
from embedkit_core.common.types import Limits, RateSettings
from embedkit_core.testing import FakeServer

PRICE = Decimal("0.02")


def test_an_estimate_reads_the_cache_and_sends_nothing(tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, cache=tmp_path)
    embedder.embed([f"kept {i}" for i in range(30)])
    sent = len(server.received)
    estimate = embedder.estimate([f"kept {i}" for i in range(50)] + ["kept 0"])
    assert len(server.received) == sent
    assert (estimate.texts, estimate.unique_texts, estimate.cache_hits, estimate.texts_to_send) == (51, 50, 30, 20)
    assert estimate.cost_usd == estimate.tokens * PRICE / 1_000_000
    assert estimate.max_cost_usd == estimate.max_tokens * PRICE / 1_000_000
    assert estimate.saved_usd > 0
    assert estimate.requests == 1


def test_an_estimate_is_close_and_its_maximum_is_never_exceeded():
    with OpenAIServer() as server:
        embedder = openai_embedder(server)
        texts = [f"a text about the number {i}, and what may be said of it" for i in range(500)]
        before = embedder.estimate(texts)
        usage = embedder.embed(texts).usage
        assert before.tokens == pytest.approx(usage.tokens, rel=0.5)
        assert usage.tokens <= before.max_tokens
        assert before.cost_usd == before.tokens * Decimal("0.02") / 1_000_000
        after = embedder.estimate(texts)
        assert after.tokens == pytest.approx(usage.tokens, rel=0.05)
        assert (before.token_source, after.token_source) == (
            "estimated from UTF-8 bytes",
            "estimated from UTF-8 bytes, calibrated with billed tokens",
        )
        assert before.requests == pytest.approx(usage.requests, abs=2)


@pytest.mark.parametrize(("n", "tokens"), [(20, 2), (500, 2), (1000, 1000), (1750, 100), (3000, 200)])
def test_the_estimated_requests_are_those_that_are_sent(server, n, tokens):
    """7 requests were announced and 14 sent: their tokens, and the small first one, were not counted."""
    embedder = openai_embedder(server, max_concurrency=8)
    texts = numbered(n, tokens=tokens)
    cold = embedder.estimate(texts).requests
    sent = embedder.embed(texts).usage.requests
    assert sent <= cold <= 1.5 * sent  # the tokens of the cold estimate are about 1.4 times those billed
    more = [f"more {text}" for text in texts]
    warm = embedder.estimate(more).requests
    assert embedder.embed(more).usage.requests == pytest.approx(warm, abs=1)


def test_few_requests_per_minute_are_estimated_as_few_large_requests(server):
    texts = numbered(3000, tokens=200)
    assert openai_embedder(server, requests_per_minute=10).estimate(texts).requests < 20


def test_an_iterator_is_estimated_as_a_list_and_repeated_texts_cost_once(tmp_path, monkeypatch):
    embedder = fake_embedder(FakeServer(usd_per_million=PRICE), cache=tmp_path)
    embedder.embed([f"text {i}" for i in range(100)])
    texts = [f"text {i}" for i in range(TEXTS_PER_CHUNK)] * 2 + ["text 0", "one more"]
    estimate = embedder.estimate(iter(texts))
    monkeypatch.setattr("embedkit_core.calls.estimate.TEXTS_PER_CHUNK", 100_000)
    assert estimate == embedder.estimate(texts)
    assert (estimate.texts, estimate.unique_texts, estimate.cache_hits) == (
        2 * TEXTS_PER_CHUNK + 2,
        TEXTS_PER_CHUNK + 1,
        100,
    )
    assert estimate.requests == embedder.estimate(list(dict.fromkeys(texts))).requests


def test_invalid_texts_are_named_by_their_positions_in_the_whole_input():
    texts = ["fine"] * (TEXTS_PER_CHUNK + 10)
    texts[3] = ""
    texts[TEXTS_PER_CHUNK + 1] = "bad \ud800"
    with pytest.raises(InputError, match=f"2 of {TEXTS_PER_CHUNK + 10:,} texts cannot be embedded") as caught:
        fake_embedder(FakeServer()).estimate(texts)
    assert caught.value.indices == (3, TEXTS_PER_CHUNK + 1)
    assert f"(a lone surrogate; decode with errors='replace') at position {TEXTS_PER_CHUNK + 1}" in str(caught.value)
    with pytest.raises(InputError) as caught:
        fake_embedder(FakeServer()).estimate(["fine", " "])
    assert caught.value.indices == (1,)


def test_cache_hits_cost_nothing(tmp_path):
    embedder = fake_embedder(FakeServer(usd_per_million=PRICE), cache=tmp_path)
    embedder.embed(["one", "two"])
    estimate = embedder.estimate(["one", "two", "one"])
    assert (estimate.texts_to_send, estimate.tokens, estimate.max_tokens, estimate.requests, estimate.seconds) == (
        0,
        0,
        0,
        0,
        0.0,
    )
    assert estimate.cost_usd == estimate.max_cost_usd == estimate.cost_per_text_usd == 0


def test_an_unknown_price_is_none_and_never_0(tmp_path):
    embedder = fake_embedder(FakeServer(), cache=tmp_path)
    estimate = embedder.estimate(["one"])
    assert (estimate.cost_usd, estimate.max_cost_usd, estimate.cost_per_text_usd) == (None, None, None)
    embedder.embed(["one"])
    estimate = embedder.estimate(["one"])
    assert (estimate.cost_usd, estimate.saved_usd) == (Decimal(0), None)


def test_a_query_has_its_own_estimate(tmp_path):
    embedder = fake_embedder(FakeServer(), cache=tmp_path)
    embedder.embed(["text"])
    assert embedder.estimate(["text"]).cache_hits == 1
    assert embedder.estimate(["text"], input_type="query").cache_hits == 0
    embedder.embed_query("text")
    assert embedder.estimate(["text"], input_type="query").cache_hits == 1


def test_fewer_dimensions_of_a_cached_vector_are_estimated_as_hits(tmp_path):
    with OpenAIServer() as server:
        openai_embedder(server, cache=tmp_path).embed(["text"])
        assert openai_embedder(server, dimensions=256, cache=tmp_path).estimate(["text"]).cache_hits == 1


def test_a_truncated_text_costs_no_more_than_the_limit():
    server = FakeServer(limits=Limits(text_tokens=100), usd_per_million=PRICE)
    assert fake_embedder(server).estimate(["word " * 10_000]).tokens == 100
    assert fake_embedder(server, on_long_text="mean").estimate(["word " * 10_000]).tokens > 1000


def test_the_estimated_time_is_that_of_the_strictest_limit():
    texts = [f"text {i}" for i in range(3000)]
    server = FakeServer()
    free, slow = fake_embedder(server).estimate(texts), fake_embedder(server, requests_per_minute=1).estimate(texts)
    few = fake_embedder(server, tokens_per_minute=1000).estimate(texts)
    assert slow.requests > 1
    assert slow.seconds == 60.0 * slow.requests
    assert few.seconds == 60.0 * few.tokens / 950  # 5 % are kept for queries
    assert free.seconds < slow.seconds


@pytest.mark.parametrize("rates", [{"requests_per_minute": 100}, {"tokens_per_minute": 100_000}])
def test_limits_above_what_a_job_needs_do_not_change_its_estimate(rates):
    texts, server = [f"text {i}" for i in range(3000)], FakeServer()
    assert fake_embedder(server, **rates).estimate(texts) == fake_embedder(server).estimate(texts)


@pytest.mark.parametrize("rates", [RateSettings(None, 200_000), RateSettings(100, 1_000_000), RateSettings(20, None)])
def test_the_estimate_of_a_job_with_limits_is_near_the_duration_on_a_virtual_clock(rates):
    server = FakeServer(limits=LIMITS)
    embedder = fake_embedder(
        server, requests_per_minute=rates.requests_per_minute, tokens_per_minute=rates.tokens_per_minute
    )
    estimate = embedder.estimate(numbered(20_000, tokens=60))
    sim = Simulation(VirtualServer(estimate_ratio=1.0))
    sim.submit([f"text {i}" for i in range(20_000)], size=estimate.tokens // 20_000, rates=rates)
    assert sim.run() == pytest.approx(estimate.seconds, rel=0.1, abs=5)
    assert sim.server.requests == pytest.approx(estimate.requests, rel=0.1, abs=2)


def test_the_estimate_of_a_local_model_states_that_it_is_free():
    estimate = fake_embedder(FakeServer(usd_per_million=0)).estimate(["a", "b"])
    local = replace(estimate, price_source=THIS_MACHINE, seconds=None)
    assert str(local) == "2 texts, 0 from cache, 2 to send in 1 request, about 2 tokens, free, on this machine"


async def test_the_async_estimate_is_the_same(tmp_path):
    embedder = fake_embedder(FakeServer(usd_per_million=PRICE), cache=tmp_path)
    texts = [f"text {i}" for i in range(300)]
    assert await embedder.aestimate(iter(texts)) == embedder.estimate(texts)


def test_an_estimate_has_a_readable_text_and_converts_to_json():
    estimate = fake_embedder(FakeServer(usd_per_million=PRICE)).estimate([f"text {i}" for i in range(1000)])
    assert str(estimate).startswith("1,000 texts, 0 from cache, 1,000 to send in 17 requests, about ")
    assert json.loads(json.dumps(estimate.to_dict()))["cost_usd"] == f"{estimate.cost_usd.normalize():f}"


@needs_local_model
def test_a_local_model_costs_nothing_and_its_time_is_unknown_before_its_first_run():
    with copied_model() as folder:  # one that no other test has run
        embedder = Embedder(f"local:{folder}", cache=False)
        estimate = embedder.estimate(["hello world", "hello"])
        assert (estimate.cost_usd, estimate.max_cost_usd, estimate.seconds) == (Decimal(0), Decimal(0), None)
        embedder.embed(["hello world", "hello"])
        assert embedder.estimate(["another"]).seconds > 0


def test_an_estimate_changes_no_vectors(tmp_path):
    embedder = fake_embedder(FakeServer(), cache=tmp_path)
    rows = embedder.embed(["a", "b"]).vectors
    embedder.estimate(["a", "b", "c"])
    assert np.array_equal(embedder.embed(["a", "b"]).vectors, rows)


def test_the_maximum_includes_the_prompt_of_each_chunk_of_a_long_text():
    server = FakeServer(limits=Limits(text_tokens=10))
    embedder = fake_embedder(server, on_long_text="mean", document_prompt="passage: ")
    text = " ".join(["aa"] * 100)
    spec = embedder._specs["document"].request_spec
    assert spec.overhead_tokens >= len("passage: ")
    assert embedder.estimate([text]).max_tokens == len(text) + 2 * 30 * spec.overhead_tokens
    assert embedder.estimate(["short"]).max_tokens == 5 + spec.overhead_tokens


async def test_without_a_tokenizer_tokens_are_estimated_and_corrected_by_bills(server):
    embedder = openai_embedder(server, document_prompt="a prompt of several words: ")
    texts = [f"a text about the number {i}" for i in range(100)]
    assert embedder.count_tokens(texts) == embedder.estimate(texts).tokens
    billed = embedder.embed(texts).usage.tokens
    assert embedder.count_tokens(iter(texts)) == embedder.without_cache().estimate(texts).tokens
    assert embedder.count_tokens(texts) == pytest.approx(billed, rel=0.2)
    assert 2 * embedder.count_tokens(texts[0]) == embedder.count_tokens([texts[0]] * 2)
    assert await embedder.acount_tokens([*texts, " "]) == embedder.count_tokens(texts)
    assert embedder.max_input_tokens == 8192
