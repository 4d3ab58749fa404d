"""Processes with a cache folder each, as on several machines, and one Redis."""

from support.embedders import numbered
from support.processes import check, embed, repaid

from embedkit_core.cache import CacheFolder


def test_machines_with_the_same_texts_pay_for_each_once_and_have_them_in_their_folders(
    workers, server, redis, tmp_path
):
    texts = numbered(300)
    server.latency = 0.05
    machines = [workers.one(cache=[tmp_path / name, redis.address]) for name in ("1", "2")]
    jobs = [machine.start(embed, texts) for machine in machines]
    results = [job.result() for job in jobs]
    for result in results:
        check(result, texts)
    assert not repaid(server)
    assert sum(result.sent for result in results) == 300
    for name, machine in zip(("1", "2"), machines, strict=True):
        assert machine.close() == 0
        assert CacheFolder(tmp_path / name).stats().vectors == 300
    third = workers.one(cache=redis.address)
    assert third.run(embed, texts).hits == 300


def test_a_machine_does_not_wait_for_what_a_redis_without_a_cache_of_both_would_not_show(
    workers, server, redis, tmp_path
):
    server.hold()
    jobs = []
    for n, name in enumerate(("1", "2")):
        machine = workers.one(cache=tmp_path / name, coordination=redis.address)
        jobs.append(machine.start(embed, ["a text"]))
        server.wait_for_requests(n + 1)
    server.release()
    assert [job.result().sent for job in jobs] == [1, 1]
