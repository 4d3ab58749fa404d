"""The part of the commands that is common to all benchmarks of several processes."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks import record
from benchmarks.processes.bench import Row, Scenario, markdown
from benchmarks.processes.worker import Result


def choose(parser: argparse.ArgumentParser, given: argparse.Namespace, scenarios: Mapping[str, Scenario]) -> list[str]:
    """Return the scenarios that `--only` names, or all; end with a usage error if an argument is invalid."""
    chosen = given.only.split(",") if given.only else list(scenarios)
    if unknown := set(chosen) - set(scenarios):
        parser.error(
            f"--only: unknown scenarios (got {', '.join(sorted(unknown))}). Choose from {', '.join(scenarios)}"
        )
    if given.rounds < 2 or given.processes < 2:
        parser.error(f"--rounds and --processes: must be at least 2 (got {given.rounds} and {given.processes})")
    return chosen


def measure(kind: str, bench: Any, scenarios: Mapping[str, Scenario], chosen: list[str], rounds: int) -> int:
    """Measure the chosen scenarios, print their table and write every result to a file.

    Args:
        kind: The beginning of the file's name.
        bench: What the scenarios take.
        scenarios: All scenarios by name.
        chosen: The names of those to measure.
        rounds: How often each is measured.

    Returns:
        The exit code: 1 if a bar is not met.
    """
    rows: list[Row] = []
    results: dict[str, list[Result]] = {}
    origin = record.origin()
    run = f"{kind}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        scenario = scenarios[name]
        results[name] = [scenario.measure(bench, n) for n in range(1 if scenario.once else rounds)]
        new = scenario.rows(results[name], bench)
        print(markdown(new), file=sys.stderr, flush=True)
        rows += new
        file = record.write(run, origin, {"processes": bench.n, "rounds": rounds, "scenarios": results})
    print(markdown(rows))
    print(f"results: {file}", file=sys.stderr)
    return 0 if all(row.met for row in rows) else 1
