"""Measure several processes that share a cache, with and without coordination, and print a table with the bars.

    make bench-processes ARGS="--only duplicates,kills --rounds 5"
    make bench-redis ARGS="--only warm,trips"

They share a cache folder, or with --redis one Redis server, and have folders of their own.

Everything takes about ten minutes. The results of all rounds are written to a JSON file. The exit code is 1 if a bar is
not met.
"""

import argparse
import contextlib

from benchmarks.processes import limits, shared_redis, work
from benchmarks.processes.bench import Bench
from benchmarks.processes.command import choose, measure
from benchmarks.speed.bench import running

SCENARIOS = {**work.SCENARIOS, **limits.SCENARIOS}


def main() -> int:
    """Measure the chosen scenarios, print their table and write every result to a file."""
    parser = argparse.ArgumentParser(prog="processes", description=str(__doc__).splitlines()[0])
    parser.add_argument("--redis", action="store_true", help="one Redis server, and a folder for each process")
    parser.add_argument(
        "--only", help=f"some of {','.join(SCENARIOS)}; with --redis {','.join(shared_redis.SCENARIOS)}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often, at least 2; default: 3")
    parser.add_argument("--processes", type=int, default=8, help="how many processes; default: 8")
    given = parser.parse_args()
    scenarios = shared_redis.SCENARIOS if given.redis else SCENARIOS
    chosen = choose(parser, given, scenarios)
    with running() as server, contextlib.ExitStack() as stack:
        bench = Bench(server, given.processes)
        if given.redis:
            redis = stack.enter_context(shared_redis.redis_server(server.folder))
            bench = shared_redis.RedisBench(server, given.processes, redis)
        return measure("redis" if given.redis else "processes", bench, scenarios, chosen, given.rounds)


if __name__ == "__main__":
    raise SystemExit(main())
