"""One process of a scenario: reads a `Job`, prints "ready", waits for a line, then prints its result, all as JSON."""

from __future__ import annotations

import json
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.speed.corpus import DIMENSIONS, vector_of
from benchmarks.speed.measure import Clock
from benchmarks.speed.setting import KEY, MODEL

if TYPE_CHECKING:
    from embedkit_core.coordination.port import Coordinator

REQUEST_TEXTS = 256  # of the exchanges with the coordinator alone
TOKENS_PER_TEXT = 60
LIMIT = 10**12  # in force, and never reached
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        task: "embed"; "warm": embed twice, with imports; "mget": read a Redis cache by hand, also twice; "exchange":
            talk to the coordinator and send nothing.
        corpus: A file with texts, as JSON.
        cache: The embedder's cache: a folder, or a folder and the address of a Redis.
        first: Index of the first text in the corpus.
        n: The number of texts, or of exchanges.
        order: Seed of the order of the texts; None for that of the corpus.
        arguments: Additional arguments of the embedder.
        questions: What an exchange asks for: claims, also a permit (2), and also a reservation (3).
        interval: Seconds between two exchanges, on average.
    """

    port: int
    corpus: str
    cache: str | list[str]
    n: int
    task: str = "embed"
    first: int = 0
    order: int | None = None
    slots: int = 16
    arguments: dict[str, Any] = field(default_factory=dict)
    questions: int = 1
    interval: float = 0.0


J = TypeVar("J", bound=Job)


class Warnings(logging.Handler):
    """Keeps the library's warnings: a coordinator that fails would change what is measured."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def start_together() -> None:
    """Report that everything is prepared, and wait for the other processes."""
    print("ready", flush=True)
    if not sys.stdin.readline():
        raise SystemExit("the benchmark has ended")


def embed(job: Job) -> Result:
    """Embed the texts, after one text of its own: imports and the opening of files are not measured."""
    import numpy as np

    from embedkit_core import Embedder

    texts = json.loads(Path(job.corpus).read_bytes())[job.first : job.first + job.n]
    if job.order is not None:
        random.Random(job.order).shuffle(texts)
    embedder = Embedder(**embedder_arguments(job))
    embedder.embed([f"process {os.getpid()}"])
    start_together()
    started = time.monotonic()
    with Clock() as clock:
        result = embedder.embed(texts)
    ended = time.monotonic()
    embedder.close()
    failed = {index: type(error).__name__ for index, error in result.failed.items()}
    wrong = sum(
        index not in failed and not np.abs(row - vector_of(text)).max() < 1e-6
        for index, (text, row) in enumerate(zip(texts, result.vectors, strict=True))
    )
    return {**clock.result, "started": started, "ended": ended, "wrong": wrong, "failed": Counter(failed.values())}


def embedder_arguments(job: Job) -> dict[str, Any]:
    """Return the arguments of the embedder."""
    return {
        "model": MODEL,
        "api_key": KEY,
        "base_url": f"http://127.0.0.1:{job.port}/v1",
        "cache": job.cache,
        "max_concurrency": job.slots,
        "on_error": "return",
        **job.arguments,
    }


def warm(job: Job) -> Result:
    """Read cached texts in a new process, with imports and the opening of the cache; then read them again."""
    texts = json.loads(Path(job.corpus).read_bytes())[job.first : job.first + job.n]
    start_together()
    with Clock() as first:
        from embedkit_core import Embedder

        embedder = Embedder(**embedder_arguments(job))
        result = embedder.embed(texts)
    with Clock() as second:
        again = embedder.embed(texts)
    embedder.close()
    rows = zip(texts, result.vectors, again.vectors, strict=True)
    wrong = sum(any(abs(row - vector_of(text)).max() > 1e-6 for row in both) for text, *both in rows)
    return {"first": first.result["wall"], "second": second.result["wall"], "wrong": wrong}


def mget(job: Job) -> Result:
    """Read the values of a Redis cache as a program by hand: 500 keys per MGET, and nothing is checked.

    Then read them through the cache, without what a call does with its texts before.
    """
    import numpy as np
    import redis

    from embedkit_core.cache.redis.cache import KEY_PREFIX, open_address

    assert isinstance(job.cache, str)
    with closing(redis.Redis.from_url(job.cache)) as client:
        keys = list(client.scan_iter("embedkit:v1:*", 1000))[: job.n]
    start_together()
    times = {name: _read_by_hand(job.cache, keys) for name in ("first", "second")}
    rows, own_keys = np.empty((len(keys), DIMENSIONS), np.float32), [key.removeprefix(KEY_PREFIX) for key in keys]
    with closing(open_address(job.cache)) as cache:
        cache.get_many(own_keys[:1])  # connects
        with Clock() as clock:
            index = -1
            for entry in (entry for found in cache.get_blocks(own_keys) for entry in found.values()):
                index += 1
                rows[index] = entry.vector
        assert index + 1 == len(keys)
    return {**times, "cache": float(clock.result["wall"])}


def _read_by_hand(address: str, keys: list[bytes]) -> float:
    import numpy as np
    import redis

    with Clock() as clock, closing(redis.Redis.from_url(address)) as client:
        rows = np.empty((len(keys), DIMENSIONS), np.float32)
        for start in range(0, len(keys), 500):
            values = client.mget(keys[start : start + 500])
            for index, value in enumerate(values, start):
                rows[index] = np.frombuffer(value, np.float32, DIMENSIONS, len(value) - 4 * DIMENSIONS)
    return float(clock.result["wall"])


def exchange(job: Job) -> Result:
    """Begin and end requests at the coordinator of the cache; measure each pair of a begin and its end."""
    from embedkit_core.common.types import RateSettings
    from embedkit_core.coordination.port import Begin, Bill, End, ProviderAccount, Reservation
    from embedkit_core.costs.amounts import Amount, BudgetLimit

    coordinator = open_coordinator(job.cache)
    account, tokens = ProviderAccount("openai", ""), [TOKENS_PER_TEXT] * REQUEST_TEXTS
    limits = RateSettings(LIMIT, LIMIT) if job.questions > 1 else RateSettings()
    amount, total = Amount(1, TOKENS_PER_TEXT), Amount(REQUEST_TEXTS, TOKENS_PER_TEXT * REQUEST_TEXTS)
    reservations, bills = [], {}
    if job.questions > 2:
        reservations = [Reservation("bench", BudgetLimit(LIMIT), dict.fromkeys(range(REQUEST_TEXTS), amount))]
        bills = {"bench": Bill(total)}
        coordinator.open_budget("bench", BudgetLimit(LIMIT))
    taken, cpu = [], []
    coordinator.exchange([], [])
    start_together()
    for _ in range(job.n):
        keys = [os.urandom(32) for _ in range(REQUEST_TEXTS)]
        since = time.monotonic()
        before = time.perf_counter(), time.thread_time()
        begin = Begin(account, MODEL, keys, tokens, since, limits, False, 1, total.tokens, reservations)
        (grant,) = coordinator.exchange([begin], [])
        between = time.perf_counter(), time.thread_time()
        assert grant.lease is not None, grant
        time.sleep(job.interval * random.random())
        ending = time.perf_counter(), time.thread_time()
        coordinator.exchange([], [End(grant.lease, since, total.tokens, 0.0, bills)])
        taken.append(between[0] - before[0] + time.perf_counter() - ending[0])
        cpu.append(between[1] - before[1] + time.thread_time() - ending[1])
        time.sleep(job.interval * random.random())
    coordinator.close()
    return {"seconds": taken, "cpu_per_text": statistics.fmean(cpu) / REQUEST_TEXTS}


def open_coordinator(cache: str | list[str]) -> Coordinator:
    """Return the coordinator of the processes that share a cache."""
    if isinstance(cache, str):
        from embedkit_core.coordination.opening import coordinator_of_folder

        return coordinator_of_folder(Path(cache)).open()
    from embedkit_core.cache.redis.address import parse
    from embedkit_core.cache.redis.connection import connection_to
    from embedkit_core.coordination.redis.coordinator import RedisCoordinator

    database, _ = parse(cache[-1], "cache")
    return RedisCoordinator(connection_to(database))


def run_task(job: J, tasks: Mapping[str, Callable[[J], Result]]) -> None:
    """Do a job, and print its result with the library's warnings."""
    warnings = Warnings()
    logging.getLogger("embedkit_core").addHandler(warnings)
    result = tasks[job.task](job)
    print(json.dumps({**result, "warnings": warnings.messages}))


if __name__ == "__main__":
    run_task(Job(**json.loads(sys.argv[1])), {"embed": embed, "warm": warm, "mget": mget, "exchange": exchange})
