"""Measures this library, its peers and code written by hand against one fake server, and prints a table of ratios.

    make bench-speed ARGS="--only cold,warm --rounds 5"

All of it takes about a quarter of an hour on a quiet machine, and is worth most there.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.speed import rows_cache, rows_load, rows_mixed, rows_speed
from benchmarks.speed.bench import running
from benchmarks.speed.table import Results, Row, markdown

GROUPS = {**rows_speed.GROUPS, **rows_cache.GROUPS, **rows_load.GROUPS, **rows_mixed.GROUPS}


def main() -> None:
    """Measure the groups asked for and print their table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken; default: 3")
    parser.add_argument("--json", type=Path, help="a file for every single result")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if unknown := set(chosen) - set(GROUPS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    everything: dict[str, Results] = {}
    with running() as bench:
        for name in chosen:
            print(name, file=sys.stderr, flush=True)
            group = GROUPS[name](bench)
            everything[name] = bench.run_group(group, given.rounds)
            rows += group.rows(everything[name])
            if given.json:
                given.json.write_text(json.dumps(everything, indent=1))
    print(markdown(rows))


if __name__ == "__main__":
    main()
