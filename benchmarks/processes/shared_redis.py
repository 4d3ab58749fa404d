"""The scenarios with a cache folder for each process, as on machines of their own, and one Redis for all."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import limits, work
from benchmarks.processes.bench import Bench, Row, Scenario, field, rights, worst
from benchmarks.processes.worker import REQUEST_TEXTS, Job, Result, open_coordinator
from benchmarks.speed.bench import Bench as Server
from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from embedkit_core.coordination.port import Coordinator

NO_LATENCY = {"latency": 0.0, "latency_per_token": 0.0}


class RedisBench(Bench):
    """The server, the number of processes, and a Redis server.

    Attributes:
        redis: The Redis server.
    """

    max_seconds_after_kill = 12.0  # a lease of 10 s, and the requests after it

    def __init__(self, server: Server, n: int, redis: RedisServer) -> None:
        super().__init__(server, n)
        self.redis = redis

    @contextlib.contextmanager
    def cache_folder(self, **settings: Any) -> Iterator[str]:
        """Empty the Redis too. The folders of the processes are in the one that is returned."""
        with self.redis.client() as client:
            client.flushall()
        with super().cache_folder(**settings) as folder:
            yield folder

    def job(self, folder: str, n: int, **fields: Any) -> Job:
        """Return the job of a process with a folder of its own."""
        own = tempfile.mkdtemp(dir=folder)
        return Job(self.port, self.corpus, fields.pop("cache", [own, self.redis.address]), n, **fields)

    def coordinator(self, folder: str) -> Coordinator:
        return open_coordinator([folder, self.redis.address])

    def reset(self) -> None:
        super().reset()
        with self.redis.client() as client:
            client.config_resetstat()
        self._cpu_at_reset = self._cpu_seconds()

    def commands(self) -> dict[str, int]:
        """Return how often each command was carried out since the last reset.

        A script that Redis does not know yet is refused once, and then sent.
        """
        with self.redis.client() as client:
            counts = client.info("commandstats")
        return {name.removeprefix("cmdstat_"): n["calls"] - n["failed_calls"] for name, n in counts.items()}

    def redis_cpu(self) -> float:
        """Return the seconds of CPU that Redis has used since the last reset."""
        return self._cpu_seconds() - self._cpu_at_reset

    def _cpu_seconds(self) -> float:
        with self.redis.client() as client:
            used = client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])


WARM_TEXTS = 20_000
MAX_WARM_SECONDS, MIN_VECTORS_PER_SECOND = 0.6, 50_000


def _warm(bench: RedisBench, number: int) -> Result:
    """Read 20,000 cached texts in new processes: from a folder, from Redis, through an empty folder, and by hand."""
    with bench.cache_folder(**NO_LATENCY, prepare=["tokens"]) as folder:
        filler = bench.job(folder, WARM_TEXTS)
        bench.run([filler])
        ways: dict[str, Job] = {
            "folder": replace(filler, task="warm", cache=filler.cache[0]),
            "redis": bench.job(folder, WARM_TEXTS, task="warm", cache=bench.redis.address),
            "tiers": bench.job(folder, WARM_TEXTS, task="warm"),
            "by hand": bench.job(folder, WARM_TEXTS, task="mget", cache=bench.redis.address),
        }
        order = list(reversed(ways)) if number % 2 else list(ways)
        results = {}
        for name in order:
            (results[name],) = bench.start([ways[name]]).results()
            assert name == "by hand" or bench.billed() == 0
        return results


def _warm_rows(results: list[Result], _: Bench) -> list[Row]:
    rows = []
    read = statistics.median(result["by hand"]["cache"] for result in results)
    by_hand = statistics.median(result["by hand"]["second"] for result in results)
    rows.append(
        Row(
            f"{WARM_TEXTS:,} x 1536 read through the cache in Redis",
            f"{read:.2f} s, {WARM_TEXTS / read:,.0f} vectors/s; by hand, unchecked: {by_hand:.2f} s",
            f"<= {MAX_WARM_SECONDS:g} s, >= {MIN_VECTORS_PER_SECOND:,} vectors/s",
            read <= MAX_WARM_SECONDS and WARM_TEXTS / read >= MIN_VECTORS_PER_SECOND,
        )
    )
    for name, what in (("redis", "from Redis"), ("tiers", "through an empty folder, from Redis")):
        wall, again = (statistics.median(result[name][run] for result in results) for run in ("first", "second"))
        folder = statistics.median(result[name]["first"] / result["folder"]["first"] for result in results)
        wrong = sum(result[name]["wrong"] for result in results)
        figure = f"{wall:.2f} s, again {again:.2f} s; the first {folder:.2f}x a filled folder"
        what = f"{WARM_TEXTS:,} texts embedded {what} in a new process, imports included"
        rows.append(Row(what, f"{figure}, {wrong} rows wrong", "0 rows wrong", not wrong))
    return rows


TRIP_TEXTS, TRIP_BATCH = 20_000, 256
KEYS_PER_READ = 500


def _trips(bench: RedisBench, _: int) -> Result:
    """Count the commands of a cold run, and of a second one with all texts in the folder."""
    with bench.cache_folder(prepare=["tokens"]) as folder:
        job = bench.job(folder, TRIP_TEXTS, arguments={"max_batch_texts": TRIP_BATCH})
        cold = bench.run([job])
        commands = bench.commands()
        bench.start([replace(job, task="warm")]).results()
        return {"cold": cold, "commands": commands, "warm commands": bench.commands()}


def _trips_rows(results: list[Result], _: Bench) -> list[Row]:
    def per_request(result: Result) -> float:
        commands = result["commands"]
        return float((commands.get("evalsha", 0) + commands.get("eval", 0)) / result["cold"]["requests"])

    trips, reads = max(map(per_request, results)), max(result["commands"].get("mget", 0) for result in results)
    most_reads = math.ceil(TRIP_TEXTS / KEYS_PER_READ)
    hits = max(sum(result["warm commands"].get(name, 0) for name in ("evalsha", "mget", "set")) for result in results)
    what = f"one process, {TRIP_TEXTS:,} texts, {TRIP_BATCH} a request"
    return [
        Row(f"{what}: scripts per request", f"{trips:.2f}{rights([r['cold'] for r in results])}", "<= 1", trips <= 1),
        Row(f"{what}: reads of the cache", f"{reads} MGET", f"<= {most_reads}", reads <= most_reads),
        Row(f"{what}: commands if all texts are in the folder", f"{hits}", "0", hits == 0),
    ]


OUTAGE_TEXTS, OUTAGE_BATCH, OUTAGE_SLOTS = 20_000, 64, 4
MAX_LOST_SECONDS = 2.5


def _outages(bench: RedisBench, _: int) -> Result:
    """All processes embed texts of their own, and Redis fails when half of them are sent."""
    return {fault: _outage(bench, fault) for fault in ("none", "killed", "suspended")}


def _outage(bench: RedisBench, fault: str) -> Result:
    n = OUTAGE_TEXTS // bench.n
    with bench.cache_folder(latency=0.3) as folder:
        arguments = {"max_batch_texts": OUTAGE_BATCH}
        jobs = [bench.job(folder, n, first=i * n, slots=OUTAGE_SLOTS, arguments=arguments) for i in range(bench.n)]
        processes = bench.start(jobs)
        bench.wait_for_billed(OUTAGE_TEXTS // 2)
        if fault == "killed":
            bench.redis.kill()
        elif fault == "suspended":
            bench.redis.suspend()
        results = processes.results()
        totals = {**bench.totals(results), "most_warnings": max(len(result["warnings"]) for result in results)}
        if fault == "killed":
            bench.redis.start()
        bench.redis.resume()
        return totals


def _outages_rows(results: list[Result], bench: Bench) -> list[Row]:
    rows = []
    for fault in ("killed", "suspended"):
        what = f"Redis {fault} in the middle of a run of {bench.n} processes"
        lost = max(result[fault]["wall"] - result["none"]["wall"] for result in results)
        wrong = rights([result[fault] for result in results])
        warnings = worst(results, fault, "most_warnings")
        rows += [
            Row(f"{what}: seconds lost", f"at most {lost:.1f}{wrong}", f"<= {MAX_LOST_SECONDS:g}", lost <= 2.5),
            Row(f"{what}: rows", f"all right{wrong}".replace("all right,", ""), "all right", not wrong),
            Row(f"{what}: warnings of a process", f"{warnings}", "1", warnings == 1),
        ]
    return rows


def _exchanges(bench: RedisBench, _: int) -> Result:
    """Begin and end requests at the coordinator, in one process without pauses and in all at a given rate."""
    results = {}
    for questions in work.QUESTIONS:
        requests = work.REQUESTS_PER_SECOND * work.SECONDS // bench.n
        for way, n, each, interval in (
            ("alone", 1, 1000, 0.0),
            ("together", bench.n, requests, work.SECONDS / requests),
        ):
            with bench.cache_folder() as folder:
                task = {"task": "exchange", "questions": questions, "interval": interval}
                done = bench.start([bench.job(folder, each, **task) for _ in range(n)]).results()
                texts = n * each * REQUEST_TEXTS
                seconds = statistics.quantiles((s for result in done for s in result["seconds"]), n=100)
                results[f"{way} {questions}"] = {
                    "p50_ms": seconds[49] * 1e3,
                    "p99_ms": seconds[98] * 1e3,
                    "cpu_us": statistics.fmean(result["cpu_per_text"] for result in done) * 1e6,
                    "redis_cpu_us": bench.redis_cpu() / texts * 1e6,
                }
    return results


def _exchanges_rows(results: list[Result], bench: Bench) -> list[Row]:
    def median(way: str, questions: int, name: str) -> float:
        return statistics.median(field(result, f"{way} {questions}", name) for result in results)

    rows = []
    for questions, asked in work.QUESTIONS.items():
        what = f"begin and end of {REQUEST_TEXTS} texts, {asked}"
        p50, p99 = median("alone", questions, "p50_ms"), median("together", questions, "p99_ms")
        cpu, server = median("alone", questions, "cpu_us"), median("together", questions, "redis_cpu_us")
        rows += [
            Row(f"{what}: one process, p50", f"{p50:.2f} ms", "", True),
            Row(f"{what}: {bench.n} processes, {work.REQUESTS_PER_SECOND} requests/s, p99", f"{p99:.2f} ms", "", True),
            Row(f"{what}: CPU of a text, client and Redis", f"{cpu:.2f} and {server:.2f} us", "", True),
        ]
    return rows


SCENARIOS = {
    "warm": Scenario(_warm, _warm_rows),
    "trips": Scenario(_trips, _trips_rows, once=True),
    "duplicates": work.SCENARIOS["duplicates"],
    "kills": work.SCENARIOS["kills"],
    "outages": Scenario(_outages, _outages_rows),
    "exchanges": Scenario(_exchanges, _exchanges_rows),
    **limits.SCENARIOS,
}


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Run a Redis server with an empty data set."""
    server = RedisServer(folder / "redis")
    try:
        yield server
    finally:
        server.kill()
