"""Measure this library, its peers and code written by hand against one fake server, and print a table of ratios.

    make bench-speed ARGS="--only cold,warm --rounds 5"

Everything takes about a quarter of an hour on a quiet machine. The results of all rounds are written to a JSON file.
"""

import argparse
import datetime
import sys

from benchmarks import record
from benchmarks.speed import rows_cache, rows_load, rows_mixed, rows_speed
from benchmarks.speed.bench import running
from benchmarks.speed.table import Results, Row, markdown

GROUPS = {**rows_speed.GROUPS, **rows_cache.GROUPS, **rows_load.GROUPS, **rows_mixed.GROUPS}


def main() -> None:
    """Measure the chosen groups, print their table and write every result to a file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="how often; the median counts; default: 3")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(GROUPS):
        parser.error(f"--only: unknown rows (got {', '.join(sorted(unknown))}). Choose from {', '.join(GROUPS)}")
    rows: list[Row] = []
    results: dict[str, Results] = {}
    origin = record.origin()
    run = f"speed-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
    with running() as bench:
        for name in chosen:
            print(name, file=sys.stderr, flush=True)
            group = GROUPS[name](bench)
            results[name] = bench.run_group(group, given.rounds)
            rows += group.rows(results[name])
            file = record.write(run, origin, {"rounds": given.rounds, "groups": results})
    print(markdown(rows))
    print(f"results: {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
