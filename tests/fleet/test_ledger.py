"""What workers report: attempts are counted by the processes of a worker, and usage reaches the driver once."""

import asyncio

import pytest

from embedkit_core import Usage
from embedkit_core.fleet.ray.ledger import Ledger, Life


def life(process, worker="worker", run="run"):
    return Life(run, worker, process)


async def test_processes_that_died_during_a_batch_are_counted():
    ledger = Ledger()
    assert [await ledger.begin(life(str(n)), b"batch") for n in range(3)] == [1, 2, 3]
    assert await ledger.begin(life("3"), b"another batch") == 1


async def test_equal_batches_of_a_process_are_one_attempt():
    ledger = Ledger()
    assert [await ledger.begin(life("a"), b"batch") for _ in range(4)] == [1] * 4


async def test_a_batch_that_ended_begins_anew():
    ledger = Ledger()
    await ledger.begin(life("a"), b"batch")
    await ledger.end(life("a"), b"batch", Usage(), wait=0.0)
    assert await ledger.begin(life("b"), b"batch") == 1


@pytest.mark.parametrize("other", [life("a", worker="another"), life("a", run="another")])
async def test_another_worker_or_run_counts_for_itself(other):
    ledger = Ledger()
    await ledger.begin(life("a"), b"batch")
    assert await ledger.begin(other, b"batch") == 1


async def test_usage_is_collected_once_and_by_run():
    ledger = Ledger()
    await ledger.report(life("a"), Usage(texts=1))
    await ledger.report(life("b"), Usage(texts=2))
    await ledger.report(life("a", run="another"), Usage(texts=4))
    assert await ledger.collect() == {"run": Usage(texts=3), "another": Usage(texts=4)}
    await ledger.report(life("a"), Usage(texts=8))
    assert await ledger.collect() == {"run": Usage(texts=8)}


async def test_the_end_of_a_batch_waits_until_the_driver_has_its_usage():
    ledger = Ledger()
    end = asyncio.create_task(ledger.end(life("a"), b"batch", Usage(texts=1), wait=60.0))
    assert await ledger.collect() == {"run": Usage(texts=1)}
    await asyncio.sleep(0)
    assert not end.done()  # the driver has not added it yet
    following = asyncio.create_task(ledger.collect())
    await asyncio.wait_for(end, 10)
    assert not following.done()
    following.cancel()


async def test_the_end_of_a_batch_does_not_wait_for_a_driver_that_is_gone():
    ledger = Ledger()
    await ledger.end(life("a"), b"batch", Usage(texts=1), wait=0.01)
    assert await ledger.collect() == {"run": Usage(texts=1)}


async def test_closing_ends_the_wait_for_usage():
    ledger = Ledger()
    waiting = asyncio.create_task(ledger.collect())
    await asyncio.sleep(0)
    await ledger.close()
    assert await asyncio.wait_for(waiting, 10) == {}
