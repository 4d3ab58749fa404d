"""Measure workers on one Redis, as plain processes and through Ray, and print a table with the bars.

    make bench-fleet ARGS="--only overhead,kills --rounds 5"

Everything takes about ten minutes. The results of all rounds are written to a JSON file. The exit code is 1 if a bar is
not met.
"""

import argparse
import os

from benchmarks.fleet import deaths, work
from benchmarks.fleet.bench import FleetBench
from benchmarks.processes.command import choose, measure
from benchmarks.processes.shared_redis import redis_server
from benchmarks.speed.bench import running
from benchmarks.speed.setting import KEY

SCENARIOS = {**work.SCENARIOS, **deaths.SCENARIOS}
QUIET_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def main() -> int:
    """Measure the chosen scenarios, print their table and write every result to a file."""
    parser = argparse.ArgumentParser(prog="fleet", description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", help=f"some of {','.join(SCENARIOS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often, at least 2; default: 3")
    parser.add_argument("--workers", type=int, default=2, dest="processes", help="how many workers; default: 2")
    given = parser.parse_args()
    chosen = choose(parser, given, SCENARIOS)
    os.environ |= {"OPENAI_API_KEY": KEY, **QUIET_RAY}
    with running() as server, redis_server(server.folder) as redis:
        return measure("fleet", FleetBench(server, given.processes, redis), SCENARIOS, chosen, given.rounds)


if __name__ == "__main__":
    raise SystemExit(main())
