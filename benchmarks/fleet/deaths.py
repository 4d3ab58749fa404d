"""Scenarios about deaths: a killed worker, and a block that always kills its worker."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.fleet.bench import WAYS, FleetBench
from benchmarks.fleet.poison import DEATHS
from benchmarks.processes.bench import Row, Scenario, rights, worst
from benchmarks.processes.worker import Result

KILLED_TEXTS, KILLED_SLOTS, KILLED_BATCH = 8000, 4, 64


def _kills(bench: FleetBench, _: int) -> Result:
    """`kill -9` of one worker when half of the texts are billed; another one takes its place."""
    return {way: _kill(bench, way) for way in WAYS}


def _kill(bench: FleetBench, way: str) -> Result:
    with bench.cache_folder(latency=0.3):
        jobs = bench.jobs(way, KILLED_TEXTS, slots=KILLED_SLOTS, arguments={"max_batch_texts": KILLED_BATCH})
        processes = bench.start(jobs)
        bench.wait_for_billed(KILLED_TEXTS // 2)
        killed = time.monotonic()
        another = bench.kill_worker(processes, jobs[0])
        results = processes.results() + (another.results() if another else [])
        totals = bench.totals(results)
    return {**totals, "seconds_after": totals["ended"] - killed}


def _kills_rows(results: list[Result], bench: FleetBench) -> list[Row]:
    rows = []
    most = KILLED_SLOTS * KILLED_BATCH
    for way, name in WAYS.items():
        again, after = worst(results, way, "billed_again"), worst(results, way, "seconds_after")
        wrong = rights([result[way] for result in results])
        rows.append(
            Row(
                f"{name}, kill -9 of one of {bench.n} workers, {KILLED_SLOTS} requests in flight: texts billed again",
                f"at most {again:,}{wrong or '; all rows right'}; ended at most {after:.1f} s after the kill",
                f"<= {most} in its requests in flight",
                again <= most and not wrong,
            )
        )
    return rows


POISONED_TEXTS, POISONED_BLOCK, MAX_RESTARTS = 2000, 250, 3
FOR_EVER = {"max_restarts": -1, "max_task_retries": -1}
RESTARTS: dict[str, dict[str, int]] = {"our limits of restarts": {}, "Ray's default, without limits": FOR_EVER}
MESSAGE = "A worker died 3 times during a batch"


def _poison(bench: FleetBench, _: int) -> Result:
    """One block kills each process that embeds it."""
    return {name: _poisoned(bench, options) for name, options in RESTARTS.items()}


def _poisoned(bench: FleetBench, options: dict[str, int]) -> Result:
    with bench.cache_folder() as folder:
        file = Path(folder, "deaths")
        file.touch()
        os.environ[DEATHS] = str(file)
        jobs = bench.jobs("ray", POISONED_TEXTS, block_rows=POISONED_BLOCK, is_poisoned=True, options=options)
        (result,) = bench.start(jobs).results()
        deaths = len(file.read_text(encoding="utf-8").splitlines())
    return {"deaths": deaths, "wall": result["ended"] - result["started"], "error": result["error"]}


def _poison_rows(results: list[Result], _: FleetBench) -> list[Row]:
    rows = []
    for name in RESTARTS:
        deaths, wall = worst(results, name, "deaths"), worst(results, name, "wall")
        ours = all(MESSAGE in result[name]["error"] for result in results)
        rows.append(
            Row(
                f"Ray, a block that always kills its worker, {name}",
                f"ends after at most {deaths} deaths and {wall:.1f} s, with {'our' if ours else 'another'} error",
                f"our error, <= {MAX_RESTARTS} restarts",
                ours and deaths <= MAX_RESTARTS,
            )
        )
    return rows


SCENARIOS = {"kills": Scenario(_kills, _kills_rows), "poison": Scenario(_poison, _poison_rows)}
