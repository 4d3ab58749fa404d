"""Scenarios about work and its overhead: duplicates, a lone process, a killed process, the coordinator alone."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.compare.verdict import TOLERANCE, judge
from benchmarks.processes.bench import Bench, Row, Scenario, field, rights, worst
from benchmarks.processes.worker import REQUEST_TEXTS, Result

OFF = {"coordination": False}


def _median(results: list[Result], *path: str) -> float:
    return statistics.median(field(result, *path) for result in results)


TEXTS = 3000
MAX_TIMES = 2.5  # of what a process takes alone


def _duplicates(bench: Bench, number: int) -> Result:
    """All processes embed the same texts, with and without coordination; one process alone."""

    def measure(n: int, arguments: dict[str, Any]) -> Result:
        with bench.cache_folder() as folder:
            return bench.run([bench.job(folder, TEXTS, arguments=arguments) for _ in range(n)])

    measures = {"on": (bench.n, {}), "off": (bench.n, OFF), "alone": (1, OFF)}
    order = reversed(measures.items()) if number % 2 else measures.items()
    return {name: measure(*what) for name, what in order}


def _duplicates_rows(results: list[Result], bench: Bench) -> list[Row]:
    billed, without = worst(results, "on", "billed"), worst(results, "off", "billed")
    wall, off, alone = (_median(results, name, "wall") for name in ("on", "off", "alone"))
    times = statistics.median(result["on"]["wall"] / result["alone"]["wall"] for result in results)
    cpu = statistics.median(result["on"]["cpu"] / result["off"]["cpu"] for result in results)
    what = f"{bench.n} processes, the same {TEXTS:,} texts, 100 ms a request"
    wrong = rights([result["on"] for result in results])
    return [
        Row(
            f"{what}: texts sent",
            f"{billed:,} (without coordination {without:,}){wrong}",
            f"{TEXTS:,}",
            billed == TEXTS and not wrong,
        ),
        Row(
            f"{what}: time",
            f"{wall:.2f} s, {times:.2f}x one process alone ({alone:.2f} s); without coordination {off:.2f} s",
            f"<= {MAX_TIMES:g}x",
            times <= MAX_TIMES,
        ),
        Row(
            f"{what}: CPU of all processes",
            f"{_median(results, 'on', 'cpu'):.2f} s, {cpu:.2f}x without coordination",
            "less than without",
            cpu < 1,
        ),
    ]


LONE_TEXTS = 30_000


def _lone(bench: Bench, number: int) -> Result:
    """One process fills its cache, with and without coordination."""

    def measure(arguments: dict[str, Any]) -> Result:
        with bench.cache_folder(latency=0.05, latency_per_token=20e-6, prepare=["more"]) as folder:
            return bench.run([bench.job(folder, LONE_TEXTS, arguments=arguments)])

    measures: dict[str, dict[str, Any]] = {"off": OFF, "on": {}}
    order = reversed(measures.items()) if number % 2 else measures.items()
    return {name: measure(arguments) for name, arguments in order}


def _lone_rows(results: list[Result], _: Bench) -> list[Row]:
    rows = []
    for name, what, unit in (("wall", "time", "s"), ("cpu", "CPU", "s")):
        verdict = judge(*([result[way][name] for result in results] for way in ("off", "on")))
        rows.append(
            Row(
                f"one process, {LONE_TEXTS:,} texts: {what}",
                f"{verdict.current:.2f} {unit}, {verdict.ratio:.2f}x without coordination, whose spread is "
                f"{verdict.spread:.0%}{rights([result['on'] for result in results])}",
                f"<= {1 + max(TOLERANCE, verdict.spread):.2f}x",
                not verdict.is_worse,
            )
        )
    return rows


KILLED_TEXTS, KILLED_SLOTS, KILLED_BATCH = 8000, 4, 64


def _kills(bench: Bench, _: int) -> Result:
    """`kill -9` of one process when half of the texts are sent; all embed the same texts, each in its own order."""
    with bench.cache_folder(latency=0.3) as folder:
        arguments = {"max_batch_texts": KILLED_BATCH}
        processes = bench.start(
            [
                bench.job(folder, KILLED_TEXTS, order=order, slots=KILLED_SLOTS, arguments=arguments)
                for order in range(bench.n)
            ]
        )
        bench.wait_for_billed(KILLED_TEXTS // 2)
        killed = processes.kill(0)
        totals = bench.totals(processes.results())
        return {**totals, "seconds_after": totals["ended"] - killed}


def _kills_rows(results: list[Result], bench: Bench) -> list[Row]:
    again, after = worst(results, "billed_again"), worst(results, "seconds_after")
    most, wrong = KILLED_SLOTS * KILLED_BATCH, rights(results)
    what = f"kill -9 of one of {bench.n} processes, {KILLED_SLOTS} requests in flight, the same {KILLED_TEXTS:,} texts"
    return [
        Row(
            f"{what}: texts billed again",
            f"at most {again:,}{wrong or '; all rows right'}",
            f"<= {most} in its requests in flight",
            again <= most and not wrong,
        ),
        Row(
            f"{what}: from the kill to the end of the others",
            f"at most {after:.1f} s",
            f"<= {bench.max_seconds_after_kill:g} s",
            after <= bench.max_seconds_after_kill,
        ),
    ]


QUESTIONS = {1: "claims", 2: "claims and permit", 3: "claims, permit and named budget"}
REQUESTS_PER_SECOND, SECONDS = 160, 6
MAX_P50_MS, MAX_P99_MS, MAX_CPU_US = 0.3, 2.0, 1.0


def _exchanges(bench: Bench, _: int) -> Result:
    """Begin and end requests at the coordinator, in one process without pauses, and in all of them at a given rate."""

    def measure(n: int, questions: int, requests: int, interval: float) -> Result:
        with bench.cache_folder() as folder:
            job = bench.job(folder, requests, task="exchange", questions=questions, interval=interval)
            processes = bench.start([job] * n)
            results = processes.results()
        seconds = statistics.quantiles((s for result in results for s in result["seconds"]), n=100)
        cpu = statistics.fmean(result["cpu_per_text"] for result in results)
        return {"p50_ms": seconds[49] * 1e3, "p99_ms": seconds[98] * 1e3, "cpu_us": cpu * 1e6}

    requests = REQUESTS_PER_SECOND * SECONDS // bench.n
    return {
        f"{way} {questions}": measure(*arguments)
        for questions in QUESTIONS
        for way, arguments in (
            ("alone", (1, questions, 1000, 0.0)),
            ("together", (bench.n, questions, requests, SECONDS / requests)),
        )
    }


def _exchanges_rows(results: list[Result], bench: Bench) -> list[Row]:
    rows = []
    for questions, what in QUESTIONS.items():
        alone, cpu = (_median(results, f"alone {questions}", name) for name in ("p50_ms", "cpu_us"))
        p50, p99 = (_median(results, f"together {questions}", name) for name in ("p50_ms", "p99_ms"))
        request = f"begin and end of {REQUEST_TEXTS} texts, {what}"
        rows += [
            Row(f"{request}: one process, p50", f"{alone:.2f} ms", f"<= {MAX_P50_MS:g} ms", alone <= MAX_P50_MS),
            Row(f"{request}: CPU of a text", f"{cpu:.2f} us", f"<= {MAX_CPU_US:g} us", cpu <= MAX_CPU_US),
            Row(
                f"{request}: {bench.n} processes, {REQUESTS_PER_SECOND} requests/s in total, p99",
                f"{p99:.2f} ms (p50 {p50:.2f} ms)",
                f"<= {MAX_P99_MS:g} ms",
                p99 <= MAX_P99_MS,
            ),
        ]
    return rows


SCENARIOS = {
    "duplicates": Scenario(_duplicates, _duplicates_rows),
    "lone": Scenario(_lone, _lone_rows),
    "kills": Scenario(_kills, _kills_rows),
    "exchanges": Scenario(_exchanges, _exchanges_rows),
}
