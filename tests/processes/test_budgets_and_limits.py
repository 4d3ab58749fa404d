"""Named budgets, pauses and limits of several processes."""

import sqlite3
import time

import pytest
from support.embedders import numbered, openai_embedder
from support.openai_server import Fault
from support.processes import (
    DIMENSIONS,
    WorkerError,
    check,
    embed,
    embed_with,
    finish_embedding,
    spend,
    start_embedding,
)

from embedkit_core import track_usage
from embedkit_core.coordination.local.schema import DATABASE

TOKENS = 10  # of each text, in the server's count
INGEST = {"budget_tokens": 300, "budget_name": "ingest"}


def test_processes_share_a_named_budget(workers, server):
    texts = numbered(120, TOKENS)  # none can pay for its part alone
    most = max(len(text.encode()) for text in texts) + 10
    jobs = [worker.start(spend, texts[40 * n : 40 * n + 40]) for n, worker in enumerate(workers(3, **INGEST))]
    results = [job.result() for job in jobs]
    assert 300 - most < server.billed_tokens <= 300
    assert TOKENS * sum(n for n, _, _ in results) == server.billed_tokens
    for _, name, text in results:
        assert name == "BudgetError"
        assert text.startswith("The budget 'ingest' of 300 tokens has ")
        assert "rag-embedkit budget reset" in text


def test_what_a_killed_process_had_in_flight_counts_as_spent(workers, server):
    texts = numbered(4, TOKENS)
    reserved = sum(len(text.encode()) for text in texts)
    limit = {"budget_tokens": 2 * reserved, "budget_name": "ingest"}
    server.hold()
    victim, other = workers(2, **limit)
    victim.run(start_embedding, texts)
    server.wait_for_requests(1)
    other.run(start_embedding, texts)
    victim.kill()
    server.release()
    check(other.run(finish_embedding), texts)
    with pytest.raises(WorkerError, match=f"'ingest' of {2 * reserved} tokens has"):
        other.run(embed, numbered(1, 4 * TOKENS))
    assert server.billed_tokens == 2 * 4 * TOKENS


def test_another_amount_for_a_named_budget_is_an_error(workers, server):
    workers.one(**INGEST).run(embed, ["a"])
    with pytest.raises(WorkerError, match=r"ConfigurationError: budget_name: 'ingest' exists with a budget of 300"):
        workers.one(budget_tokens=301, budget_name="ingest").run(embed, ["b"])
    assert server.billed_texts == {"a": 1}


def embed_tracked(embedder, texts, **options):
    """Embed texts inside a block with a budget."""
    with track_usage(**options):
        return embed(embedder, texts)


def test_blocks_of_processes_share_a_named_budget(workers, server):
    first, second = workers(2)
    text = numbered(1, 40)[0]
    options = {"budget_tokens": len(text.encode()) + 20, "budget_name": "job"}
    check(first.run(embed_tracked, [text], **options), [text])
    with pytest.raises(WorkerError, match="'job'"):
        second.run(embed_tracked, [text.upper()], **options)
    check(second.run(embed, [text.upper()]), [text.upper()])


def test_a_pickled_embedder_shares_its_named_budget_with_a_spawned_process(workers, server):
    text = numbered(1, 40)[0]
    limit = len(text.encode()) + 20
    embedder = openai_embedder(
        server,
        cache=workers.cache,
        dimensions=DIMENSIONS,
        pickle_api_key=True,
        budget_tokens=limit,
        budget_name="ingest",
    )
    spawned = workers.one(method="spawn")
    check(spawned.run(embed_with, embedder, [text]), [text])
    with pytest.raises(WorkerError, match=f"'ingest' of {limit} tokens"):
        workers.one().run(embed_with, embedder, [text.upper()])
    embedder.close()


def wait_for_pause(folder):
    """Wait until a pause is stored for all processes."""
    connection = sqlite3.connect(f"file:{folder / DATABASE}?mode=ro", uri=True)
    while not connection.execute("SELECT 1 FROM Models WHERE paused_until > 0").fetchone():
        time.sleep(0.01)
    connection.close()


def test_a_pause_that_the_server_asks_one_process_for_is_kept_by_all(workers, server):
    first, second = workers(2)
    for worker in (first, second):
        worker.run(embed, [f"before {worker.pid}"])
    server.faults = [Fault.rate_limited(retry_after=2)]
    first.run(start_embedding, ["a"])
    wait_for_pause(workers.coordination)
    check(second.run(embed, ["b"]), ["b"])
    check(first.run(finish_embedding), ["a"])
    refused, *later = server.requests[2:]
    assert len(later) == 2
    assert all(request.started - refused.started >= 1.9 for request in later)


def test_each_process_has_its_own_concurrency(workers, server):
    first, second = workers(2, max_concurrency=1)
    server.hold()
    first.run(start_embedding, numbered(40))
    server.wait_for_requests(1)
    second.run(start_embedding, numbered(80)[40:])
    server.wait_for_requests(2)
    server.release()
    for worker, texts in ((first, numbered(40)), (second, numbered(80)[40:])):
        check(worker.run(finish_embedding), texts)
    assert server.peak_in_flight == 2


def test_a_limit_per_minute_applies_to_all_processes(workers, server):
    limits = {"requests_per_minute": 6, "deadline": 1.5}
    jobs = [worker.start(spend, [f"{worker.pid} {n}" for n in range(4)]) for worker in workers(2, **limits)]
    results = [job.result() for job in jobs]
    assert len(server.requests) == 6
    assert sum(n for n, _, _ in results) == 6
    assert {name for _, name, _ in results} <= {"", "TimedOutError"}
