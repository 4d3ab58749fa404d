"""Compare the speed of a commit, BASE, with the current tree.

    make bench-compare BASE=<commit> ARGS="--only cold,query --rounds 7"

Both trees are measured in turn, the order changes with each round, and each measurement is a process of its own. A row
that is worse after the last round is measured for as many rounds again. The exit code is 1 if a row is worse then, or
if a measurement failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks import record
from benchmarks.compare import trees, worker
from benchmarks.compare.verdict import TOLERANCE, Verdict, judge
from benchmarks.speed.bench import Bench, running
from benchmarks.speed.control import reset
from benchmarks.speed.corpus import make_texts, vector_of
from benchmarks.speed.table import shown

MIN_ROUNDS = 5
MAX_SECONDS = 120  # of one measurement
HEADINGS = ("row", "what", "base", "current", "ratio", "spread of base", "worse")


class MeasurementError(Exception):
    """A worker did not finish."""


class Comparison:
    """The trees, the server, and the values measured so far: by row and tree, one for each round."""

    def __init__(self, bench: Bench, sources: dict[str, Path]) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}
        self.failed: dict[str, str] = {}
        self._bench = bench
        self._sources = sources
        self._corpus = bench.folder / "corpus"
        self._corpus.mkdir()
        texts = make_texts(worker.CORPUS_TEXTS)
        (self._corpus / "texts.json").write_text(json.dumps(texts))
        np.save(self._corpus / "vectors.npy", np.array([vector_of(text) for text in texts[:: worker.SAMPLE_EVERY]]))
        reset(bench.port, worker.NO_LATENCY)
        for tree in sources:
            self._run_worker(worker.PREPARE, tree)

    def _run_worker(self, row: str, tree: str) -> float:
        source = self._sources[tree]
        scratch = Path(tempfile.mkdtemp(dir=self._bench.folder))
        job = worker.Job(
            row=row,
            tree=str(source),
            base_url=f"http://127.0.0.1:{self._bench.port}/v1",
            corpus=str(self._corpus),
            cache=str(self._bench.folder / f"cache-{tree}"),
            scratch=str(scratch),
        )
        environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{source / 'shared'}", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-P", str(worker.__file__), json.dumps(job._asdict())]
        try:
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment, timeout=MAX_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"{tree}: not finished after {MAX_SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
            raise MeasurementError(f"{tree}: {last[:200]}") from None
        finally:
            shutil.rmtree(scratch)
        value: float = json.loads(done.stdout.splitlines()[-1])["value"]
        return value

    def _measure(self, row: str, tree: str) -> float:
        values = []
        for _ in range(worker.ROWS[row].processes):
            reset(self._bench.port, worker.ROWS[row].server)
            values.append(self._run_worker(row, tree))
        return min(values)

    def run(self, rows: list[str], rounds: int) -> None:
        """Measure rows round after round; a row that fails is not measured again."""
        for number in range(rounds):
            order = list(self._sources)[:: -1 if number % 2 else 1]
            for row in rows:
                if row in self.failed:
                    continue
                try:
                    pair = {tree: self._measure(row, tree) for tree in order}
                except MeasurementError as error:
                    self.failed[row] = str(error)
                    print(f"  round {number + 1}: {row}: failed: {error}", file=sys.stderr, flush=True)
                    continue
                for tree, value in pair.items():
                    self.values.setdefault(row, {}).setdefault(tree, []).append(value)
                unit = worker.ROWS[row].unit
                print(
                    f"  round {number + 1}: {row}: base {shown(pair['base'], unit)}, "
                    f"current {shown(pair['current'], unit)}, ratio {pair['current'] / pair['base']:.3f}",
                    file=sys.stderr,
                    flush=True,
                )

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdict of each row that has not failed."""
        return {row: judge(**values) for row, values in self.values.items() if row not in self.failed}


def _table(verdicts: dict[str, Verdict], failed: dict[str, str]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for name, row in worker.ROWS.items():
        if name in failed:
            lines.append((name, row.what, "", "", "", "", f"**failed**: {failed[name]}"))
        elif verdict := verdicts.get(name):
            lines.append(
                (
                    name,
                    row.what,
                    shown(verdict.base, row.unit),
                    shown(verdict.current, row.unit),
                    f"{verdict.ratio:.3f}",
                    f"{verdict.spread:.1%}",
                    "**worse**" if verdict.is_worse else "no",
                )
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _arguments() -> argparse.Namespace:
    width = max(map(len, worker.ROWS))
    rows = "\n".join(f"  {name:{width}}  {row.what} [{row.unit}]" for name, row in worker.ROWS.items())
    parser = argparse.ArgumentParser(
        prog="bench-compare",
        description=str(__doc__).splitlines()[0],
        epilog=f"rows:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("--only", default=",".join(worker.ROWS), help="rows, separated by commas (default: all)")
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help=f"at least {MIN_ROUNDS}, the default")
    given = parser.parse_args()
    given.rows = given.only.split(",")
    if unknown := [row for row in given.rows if row not in worker.ROWS]:
        _refuse(f"--only: unknown row (got {', '.join(map(repr, unknown))}). Choose from {', '.join(worker.ROWS)}")
    if given.rounds < MIN_ROUNDS:
        _refuse(f"--rounds: too few for a median and a spread (got {given.rounds}). Use {MIN_ROUNDS} or more")
    given.commit = trees.commit_id(given.base)
    if given.commit is None:
        _refuse(
            f"BASE: no such commit (got {given.base!r}). Use a commit id or one of {', '.join(trees.known_names())}"
        )
    return given


def _refuse(message: str) -> None:
    print(f"bench-compare: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Measure, print the table and write every value to a file."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree and the server are removed
    origin = record.origin()
    with running() as bench, trees.two_trees(given.commit, bench.folder) as sources:
        comparison = Comparison(bench, sources)
        comparison.run(given.rows, given.rounds)
        if suspects := [row for row, verdict in comparison.verdicts().items() if verdict.is_worse]:
            print(f"measured again: {', '.join(suspects)}", file=sys.stderr, flush=True)
            comparison.run(suspects, given.rounds)
    verdicts, failed = comparison.verdicts(), comparison.failed
    worse = [row for row, verdict in verdicts.items() if verdict.is_worse]
    print(_table(verdicts, failed))
    rows = {
        row: {"unit": worker.ROWS[row].unit, **comparison.values[row], **asdict(verdict), "worse": verdict.is_worse}
        for row, verdict in verdicts.items()
    }
    results = {"base": given.commit, "rounds": given.rounds, "tolerance": TOLERANCE, "rows": rows, "failed": failed}
    file = record.write(f"compare-{given.commit[:10]}", origin, results)
    print(f"\nworse: {', '.join(worse) or 'none'}; failed: {', '.join(failed) or 'none'}; values: {file}")
    sys.exit(bool(worse or failed))


if __name__ == "__main__":
    main()
