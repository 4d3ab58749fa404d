"""Scenarios about work: the overhead of Ray, and the same texts for all workers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.fleet.bench import TEXTS, WAYS, FleetBench
from benchmarks.processes.bench import Row, Scenario, rights, worst
from benchmarks.processes.worker import Result

MAX_OVERHEAD = 1.10
BLOCK_ROWS = 4096  # the default of `fleet.ray.embed`


@dataclass(frozen=True)
class Load:
    """Texts of the overhead, and what takes the time.

    Attributes:
        n: The number of texts.
        server: Settings of the server.
        job: Fields of the jobs.
    """

    n: int
    server: dict[str, Any]
    job: dict[str, Any]


LOADS = {
    "100 ms and 20 us per token": Load(
        30_000,
        {"latency": 0.1, "latency_per_token": 20e-6},
        {"block_rows": BLOCK_ROWS, "slots": 4, "arguments": {"max_batch_texts": 24}},
    ),
    "no latency": Load(TEXTS, {"latency": 0.0}, {"block_rows": BLOCK_ROWS}),
}


def _overhead(bench: FleetBench, number: int) -> Result:
    """All workers embed texts of their own, as plain processes and through Ray."""
    ways = list(reversed(WAYS) if number % 2 else WAYS)
    return {name: {way: _cold(bench, load, way) for way in ways} for name, load in LOADS.items()}


def _cold(bench: FleetBench, load: Load, way: str) -> Result:
    with bench.cache_folder(**load.server):
        results = bench.start(bench.jobs(way, load.n, **load.job)).results()
        totals = bench.totals(results)
    return {
        **totals,
        "seconds": totals["ended"] - totals["first_request"],
        "prepared": max(result["prepared"] for result in results),
        "first": totals["first_request"] - min(result["started"] for result in results),
    }


def _overhead_rows(results: list[Result], bench: FleetBench) -> list[Row]:
    rows = []
    for what, load in LOADS.items():
        measured = [result[what] for result in results]
        ratio = statistics.median(result["ray"]["seconds"] / result["plain"]["seconds"] for result in measured)
        seconds = {way: statistics.median(result[way]["seconds"] for result in measured) for way in WAYS}
        name = f"{bench.n} workers, {load.n:,} texts, {what}"
        rows.append(
            Row(
                f"{name}: Ray, from the first request to the last row",
                f"{seconds['ray']:.2f} s, {ratio:.2f}x plain processes ({seconds['plain']:.2f} s)"
                f"{rights([result[way] for result in measured for way in WAYS])}",
                f"<= {MAX_OVERHEAD:.2f}x",
                ratio <= MAX_OVERHEAD,
            )
        )
    starts = {
        way: [
            statistics.median(result[what][way][part] for result in results for what in LOADS)
            for part in ("prepared", "first")
        ]
        for way in WAYS
    }
    (imports, first), (plain, _) = starts["ray"], starts["plain"]
    figure = f"{imports:.1f} s for imports and `ray.init`, {first:.1f} s to the first request; plain {plain:.1f} s"
    return [*rows, Row(f"{bench.n} workers: start-up of Ray", figure, "", True)]


SAME_TEXTS = 8000


def _duplicates(bench: FleetBench, _: int) -> Result:
    """Each worker embeds the same texts in an order of its own."""
    return {way: _same(bench, way) for way in WAYS}


def _same(bench: FleetBench, way: str) -> Result:
    with bench.cache_folder():
        jobs = bench.jobs(way, SAME_TEXTS, seeds=[*range(bench.n)], arguments={"max_batch_texts": 64}, slots=4)
        return bench.run(jobs)


def _duplicates_rows(results: list[Result], bench: FleetBench) -> list[Row]:
    def row(way: str, name: str) -> Row:
        billed, again = worst(results, way, "billed"), worst(results, way, "billed_again")
        wrong = rights([result[way] for result in results])
        what = f"{name}, {bench.n} workers, {SAME_TEXTS:,} texts {bench.n} times: texts billed"
        is_met = billed == SAME_TEXTS and not again and not wrong
        return Row(what, f"{billed:,}, {again:,} of them twice{wrong}", f"{SAME_TEXTS:,}, 0 twice", is_met)

    return [row(*way) for way in WAYS.items()]


SCENARIOS = {"overhead": Scenario(_overhead, _overhead_rows), "duplicates": Scenario(_duplicates, _duplicates_rows)}
