"""Processes with a cache folder each, as on several machines, and one Redis that fails, is far away or is empty."""

import time
from contextlib import contextmanager

import pytest
from support.embedders import numbered, openai_embedder
from support.processes import (
    DIMENSIONS,
    WorkerError,
    check,
    embed,
    embed_in_children,
    embed_with,
    finish_embedding,
    repaid,
    spend,
    start_embedding,
    wait_for_others,
)
from support.slow_network import SlowNetwork

from embedkit_core.cache.redis.address import parse
from embedkit_core.cache.redis.connection import connection_to
from embedkit_core.coordination.redis.coordinator import RedisCoordinator


@pytest.fixture
def machines(workers, tmp_path):
    """A function that returns processes with a folder each and the Redis at an address."""
    started = []

    def start(n, address, **options):
        new = [workers.one(cache=[tmp_path / f"machine-{len(started) + i}", address], **options) for i in range(n)]
        started.extend(new)
        return new

    return start


@contextmanager
def coordinator(address):
    found = RedisCoordinator(connection_to(parse(address, "coordination")[0]))
    yield found
    found.close()


def counted(budget):
    return budget.spent.tokens + budget.lost.tokens + budget.held.tokens


def test_the_texts_of_a_killed_process_are_embedded_by_those_that_wait_after_ten_seconds(machines, server, redis):
    texts = numbered(20)
    server.hold()
    victim, *others = machines(3, redis.address)
    victim.run(start_embedding, texts)
    server.wait_for_requests(1)
    in_flight = {text for request in server.requests for text in request.texts}
    for n, other in enumerate(others):
        other.run(start_embedding, [*texts, f"own {n}"])
        other.run(wait_for_others)
    victim.kill()
    server.release()
    for n, other in enumerate(others):
        result = other.start(finish_embedding).result(60)
        check(result, [*texts, f"own {n}"])
        assert result.seconds < 40  # ten, and a busy machine
        assert not other.warnings()
    assert repaid(server).keys() <= in_flight
    assert all(n <= 2 for n in server.billed_texts.values())


def test_a_redis_that_hangs_during_requests_delays_them_once_and_changes_no_row(machines, server, new_redis):
    redis = new_redis()
    server.latency = 0.05
    both = machines(2, redis.address, max_batch_texts=10, max_concurrency=2)
    texts = [numbered(300)[:200], numbered(300)[100:]]
    for machine, own in zip(both, texts, strict=True):
        machine.run(start_embedding, own)
    server.wait_for_requests(8)
    redis.suspend()
    for machine, own in zip(both, texts, strict=True):
        result = machine.run(finish_embedding)
        check(result, own)
        assert result.seconds < 20
        (warning,) = machine.warnings()
        assert warning.startswith(f"Redis {redis.address} cannot be used: it did not answer within")
    assert all(n <= 2 for n in server.billed_texts.values())
    redis.resume()


def test_after_a_restart_without_data_running_processes_refuse_their_named_budgets(machines, server, new_redis):
    redis = new_redis()
    limit = {"budget_tokens": 10_000, "budget_name": "ingest"}
    first, second = machines(2, redis.address, **limit)
    for n, machine in enumerate((first, second)):
        check(machine.run(embed, [f"text {n}"]), [f"text {n}"])
    redis.kill()
    assert "cannot be checked" in refusal_of(second)
    redis.start()
    until = time.monotonic() + 30
    while "cannot be checked" in (refusal := refusal_of(second)):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "'ingest' of 10,000 tokens has 0 left" in refusal
    assert "Reset it (rag-embedkit budget reset" in refusal
    assert any("has lost its data" in warning for warning in second.warnings())
    with coordinator(redis.address) as found:
        assert counted(found.reset_budget("ingest")) == 10_000
    assert "new" not in server.billed_texts
    check(first.run(embed, ["new"]), ["new"])


def refusal_of(machine):
    with pytest.raises(WorkerError, match="BudgetError") as refused:
        machine.run(embed, ["new"])
    return str(refused.value)


def test_a_named_budget_of_machines_is_not_exceeded_when_one_is_killed(machines, server, new_redis):
    redis = new_redis("--appendonly", "yes")
    limit = {"budget_tokens": 1500, "budget_name": "ingest", "max_batch_texts": 4, "max_concurrency": 2}
    texts = numbered(400, 10)
    server.latency = 0.02
    victim, *others = machines(4, redis.address, **limit)
    jobs = [machine.start(spend, texts[100 * n : 100 * n + 100]) for n, machine in enumerate((victim, *others))]
    server.wait_for_requests(20)
    victim.kill()
    results = [job.result(60) for job in jobs[1:]]
    assert {name for _, name, _ in results} <= {"BudgetError", ""}
    with coordinator(redis.address) as found:
        (budget,) = found.budgets()
    assert server.billed_tokens <= counted(budget) <= 1500


def test_forked_children_use_connections_of_their_own_and_coordinate(machines, server, redis):
    (parent,) = machines(1, redis.address)
    parent.run(embed, ["before"])
    server.latency = 0.1
    texts = numbered(60)
    for result in parent.run(embed_in_children, texts, 2):
        check(result, texts)
    assert not repaid(server)


def test_a_pickled_embedder_with_an_address_shares_its_named_budget(machines, server, redis, tmp_path):
    text = numbered(1, 40)[0]
    limit = len(text.encode()) + 20
    arguments = {"cache": [tmp_path / "own", redis.address], "budget_tokens": limit, "budget_name": "ingest"}
    embedder = openai_embedder(server, dimensions=DIMENSIONS, pickle_api_key=True, **arguments)
    spawned, other = machines(1, redis.address, method="spawn") + machines(1, redis.address)
    check(spawned.run(embed_with, embedder, [text]), [text])
    with pytest.raises(WorkerError, match=f"'ingest' of {limit} tokens"):
        other.run(embed_with, embedder, [text.upper()])
    embedder.close()


def test_a_redis_that_is_far_away_is_slow_and_nothing_else(machines, server, redis):
    texts = numbered(300)
    with SlowNetwork(redis.port, 0.1) as network:
        address = f"redis://127.0.0.1:{network.port}/0"
        first, second, third = machines(3, address, max_batch_texts=50)
        jobs = [machine.start(embed, texts) for machine in (first, second)]
        for job in jobs:
            check(job.result(), texts)
        assert not repaid(server)
        for machine in (first, second, third):
            result = machine.run(embed, texts)
            check(result, texts)
            assert result.hits == 300
            assert not machine.warnings()
            machine.close()
