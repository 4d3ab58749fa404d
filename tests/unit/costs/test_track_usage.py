"""track_usage counts the calls inside its block, in tasks, threads and streams."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from support.embedders import fake_embedder, openai_embedder
from support.openai_server import Fault, OpenAIServer
from support.waiting import wait_until_joined

from embedkit_core import (
    ConfigurationError,
    Embedder,
    PartialFailureError,
    TimedOutError,
    UnavailableError,
    Usage,
    track_usage,
)
from embedkit_core.testing import FakeServer

PRICE = Decimal("0.02")
REQUESTS = (["one two three four five"], ["six seven eight nine ten"], ["one two", "three four", "five six seven"])


@pytest.mark.parametrize("price", [PRICE, None])
def test_usage_is_exact(price, tmp_path):
    server = FakeServer(usd_per_million=price)
    embedder = fake_embedder(server, cache=tmp_path)
    embedder.embed(["a", "b", "c"])
    with track_usage() as usage:
        for texts in REQUESTS:
            embedder.embed(texts)
        embedder.embed(["a", "b", "c"])
    assert (usage.tokens, usage.requests, usage.cache_hits) == (17, 3, 3)
    assert usage.cost_usd == (None if price is None else 17 * price / 1_000_000)
    assert usage.saved_usd == (None if price is None else usage.saved_tokens * price / 1_000_000)
    assert usage.texts == usage.cache_hits + usage.duplicates + usage.coalesced + usage.sent + usage.failed


async def test_a_block_counts_tasks_and_threads_with_its_context():
    server = FakeServer()
    embedder = fake_embedder(server)
    with track_usage() as usage:
        await asyncio.gather(*(embedder.aembed([f"task {i}"]) for i in range(5)))
        await asyncio.to_thread(embedder.embed, ["thread"])
        async for _ in embedder.aembed_iter([f"stream {i}" for i in range(100)]):
            pass
    await embedder.aembed(["after"])
    assert usage.texts == usage.sent == 106
    assert usage.tokens == 2 * 5 + 1 + 200
    assert embedder.usage.texts == 107


def test_a_plain_thread_counts_only_if_it_is_bound():
    server = FakeServer()
    embedder = fake_embedder(server)
    with track_usage() as usage:
        threads = [
            threading.Thread(target=usage.bind(embedder.embed), args=(["bound"],)),
            threading.Thread(target=embedder.embed, args=(["not bound"],)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(usage.bind(lambda i: embedder.embed([f"pool {i}"])), range(4)))
    assert usage.texts == 5
    assert embedder.usage.texts == 6


def test_blocks_can_be_nested():
    embedder = fake_embedder(FakeServer())
    with track_usage() as outer:
        embedder.embed(["one"])
        with track_usage() as inner:
            embedder.embed(["two"])
        assert inner.bind(lambda: embedder.embed(["three"]))().usage.texts == 1
    assert (outer.texts, inner.texts) == (3, 2)


def test_a_stream_counts_in_the_block_in_which_it_started():
    embedder = fake_embedder(FakeServer())
    with track_usage() as usage:
        rows = embedder.embed_iter(f"text {i}" for i in range(2000))
        next(rows)
    assert sum(1 for _ in rows) == 1999
    assert usage.texts == usage.sent == 2000


async def test_a_coalesced_text_is_paid_by_one_caller():
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server)
    server.hold()

    async def ask():
        with track_usage() as usage:
            await embedder.aembed(["a text that all want"])
        return usage

    asked = asyncio.gather(*(ask() for _ in range(5)))
    await asyncio.to_thread(wait_until_joined, embedder, 5)
    server.release()
    usages = await asked
    assert sorted((usage.sent, usage.coalesced, usage.tokens, usage.requests) for usage in usages) == [
        *[(0, 1, 0, 0)] * 4,
        (1, 0, 5, 1),
    ]
    assert sum(usage.cost_usd for usage in usages) == 5 * PRICE / 1_000_000


def test_the_bill_of_a_cancelled_caller_is_counted(tmp_path):
    server = FakeServer(usd_per_million=PRICE)
    embedder = fake_embedder(server, cache=tmp_path)
    server.hold()

    async def leave():
        with track_usage() as usage:
            task = asyncio.create_task(embedder.aembed(["left behind"]))
            await asyncio.to_thread(server.wait_for_requests, 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return usage

    usage = asyncio.run(leave())
    assert (usage.tokens, usage.requests) == (0, 1)
    server.release()
    embedder.embed(["left behind"])
    assert (usage.tokens, usage.texts) == (2, 0)


def test_rows_are_by_model_and_input_type_and_add_up():
    server = FakeServer(usd_per_million=PRICE)
    one, other = (
        fake_embedder(server),
        Embedder("fake:other", base_url=server.url, cache=False, prices={"fake:other": 3}),
    )
    with track_usage() as usage:
        one.embed(["a b"])
        one.embed_query("a")
        other.embed(["a b c"])
    assert [(row.model, row.input_type, row.usage.tokens) for row in usage.rows] == [
        ("fake:model", "document", 2),
        ("fake:model", "query", 1),
        ("fake:other", "document", 3),
    ]
    assert sum((row.usage for row in usage.rows), Usage()) == usage.usage
    assert usage.cost_usd == (3 * PRICE + 9) / 1_000_000
    lines = [json.loads(line) for line in usage.to_json_lines().splitlines()]
    assert [line["tokens"] for line in lines] == [2, 1, 3]
    assert usage.to_dict()["total"]["cost_usd"] == "0.00000906"
    table = usage.table().splitlines()
    assert len(table) == 2 + 3 + 1
    assert len({len(line) for line in table}) == 1
    assert "$0.0000091" in table[-1]


def test_requests_without_a_reply_count_as_possibly_billed():
    """A timeout or a closed connection counts with the upper bound of its tokens."""
    server = FakeServer(usd_per_million=PRICE)
    server.faults.extend([TimedOutError("no answer"), UnavailableError("connection lost"), None])
    with track_usage() as usage:
        fake_embedder(server).embed(["eleven char"])
    most = len("eleven char") + 4
    assert usage.possibly_billed_tokens == 2 * most
    assert usage.possibly_billed_usd == 2 * most * PRICE / 1_000_000
    assert (usage.tokens, usage.requests, usage.retries) == (2, 3, 2)


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("overloaded", status=503),
        UnavailableError("connection refused"),
    ],
)
def test_refused_and_unsent_requests_are_not_billed(error):
    server = FakeServer(usd_per_million=PRICE)
    error.unsent = error.status is None
    server.faults.extend([error, None])
    usage = fake_embedder(server).embed(["text"]).usage
    assert usage.possibly_billed_tokens == 0


def test_a_server_that_cannot_be_reached_bills_nothing():
    lost = Embedder(
        "text-embedding-3-small", base_url="http://127.0.0.1:9/v1", api_key="key", cache=False, max_retries=1
    )
    with track_usage() as usage, pytest.raises(UnavailableError):
        lost.embed(["text"])
    assert (usage.requests, usage.failed, usage.possibly_billed_tokens) == (2, 1, 0)


def test_a_server_that_cuts_connections_may_have_billed():
    with OpenAIServer() as server:
        server.faults.extend([Fault(cut=True), Fault(cut_after_work=True)])
        with track_usage() as usage:
            openai_embedder(server).embed(["some text"])
        assert usage.possibly_billed_tokens == 2 * (len("some text") + 4)
        assert usage.tokens <= server.billed_tokens <= usage.tokens + usage.possibly_billed_tokens


def test_a_failed_call_is_counted():
    server = FakeServer()
    server.rejected_texts.add("bad")
    with track_usage() as usage, pytest.raises(PartialFailureError):
        fake_embedder(server).embed(["good", "bad"])
    assert (usage.texts, usage.sent, usage.failed) == (2, 1, 1)


def test_a_tracker_has_a_readable_text():
    with track_usage() as usage:
        fake_embedder(FakeServer()).embed(["one two"])
    assert str(usage) == "1 text, 1 sent, 1 request, 2 tokens, price unknown"
    assert repr(usage) == f"<UsageTracker: {usage}>"
    with pytest.raises(AttributeError, match=r"no attribute 'token'; did you mean 'tokens'\?"):
        usage.token  # noqa: B018
    with usage, pytest.raises(ConfigurationError, match="in use"):
        usage.__enter__()
    assert track_usage().table().count("\n") == 2


def test_a_block_can_end_in_another_context_than_it_started_in():
    embedder = fake_embedder(FakeServer())

    def block():
        with track_usage() as usage:
            yield usage

    import contextvars

    generator = block()
    usage = contextvars.copy_context().run(next, generator)
    assert list(generator) == []
    embedder.embed(["text"])
    assert usage.texts == 0


def test_blocks_that_end_out_of_order_count_until_their_own_end():
    """A block in a generator ends with the generator, inside a block of the caller."""
    embedder = fake_embedder(FakeServer())

    def rows():
        with track_usage() as inner:
            yield embedder.embed(["in the generator"])
        yield inner

    generator = rows()
    next(generator)
    with track_usage() as outer:
        inner = next(generator)
        embedder.embed(["after the generator's block"])
    embedder.embed(["after all blocks"])
    assert (inner.sent, outer.sent) == (1, 1)


@pytest.mark.parametrize("kind", ["a method", "a function that gives a coroutine", "another function"])
async def test_a_bound_async_function_counts_when_it_runs(kind):
    embedder = fake_embedder(FakeServer())

    async def ask(texts):
        return await embedder.aembed(texts)

    with track_usage(budget_tokens=1000) as usage:
        bound = usage.bind(
            {"a method": embedder.aembed, "another function": ask}.get(kind, lambda x: embedder.aembed(x))
        )
    await asyncio.gather(*(bound([f"text {i}"]) for i in range(5)))
    await embedder.aembed(["not bound"])
    assert usage.sent == 5
    assert usage.budget.spent_tokens == usage.tokens == 10


def test_the_cost_of_verify_cache_is_in_the_usage_of_the_embedder(tmp_path):
    server = FakeServer()
    embedder = fake_embedder(server, cache=tmp_path)
    texts = [f"text {i}" for i in range(30)]
    embedder.embed(texts)
    verified = embedder.verify_cache(texts)
    assert verified.usage.tokens > 0
    assert embedder.usage.tokens == 60 + verified.usage.tokens == sum(server.billed.values()) * 2
