"""A soak: everything at once for some minutes, against a server that fails, and then the books must balance.

    python benchmarks/soak.py [--minutes 3] [--seed 0] [--defect rows]

Threads, event loops one after the other, forked and spawned children make queries, bulk calls and streams, cancel
them, close embedders. The server refuses, cuts, delays and garbles; processes are killed, cached values bent, caches
deleted and overwritten. What is to hold: every row is its text's vector; no text is billed twice but for a known cause;
after close() nothing of ours is left; memory stays flat; every call ends. Exits with 1 where something does not hold.

`--defect` plants one on purpose (soak/defects.py has them), which must be found.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from soak import worker  # noqa: E402 - it is found now
from soak.defects import DEFECTS  # noqa: E402
from soak.harm import Harm, until  # noqa: E402
from soak.ledger import Ledger, unharmed_in_trouble  # noqa: E402
from soak.server import main as serve  # noqa: E402
from soak.settings import Events, Settings  # noqa: E402

# Each has a cache of its own: "steady" lives from beginning to end and its memory is looked at, "killed" is killed
# again and again, of "bent" values are damaged, and the cache of "thrown" is thrown away as a whole.
LINEAGES = ("steady", "killed", "bent", "thrown")
MORE_MB = 16.0  # and 10 %, that the memory of the second half may have over the first


class Soak:
    """One run: a server, four lineages of processes, and those who do harm."""

    def __init__(self, folder: Path, minutes: float, seed: int, defect: str) -> None:
        self.folder = folder
        self.seconds = minutes * 60
        self.seed = seed
        self.defect = defect
        self.events = Events(str(folder / "events"))
        self.record = folder / "record"

    def run(self) -> None:
        server = self._start("--serve", str(self.seed), "--record", str(self.record))
        assert server.stdout is not None
        self.url = server.stdout.readline().strip()
        self.born = time.monotonic()
        self.stop = self.born + self.seconds
        jobs = [threading.Thread(target=self._follow, args=(lineage,)) for lineage in LINEAGES]
        jobs += [threading.Thread(target=self._bend), threading.Thread(target=self._throw_away)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        server.communicate(timeout=120)
        if server.returncode:
            self.events.add("violation", what=f"the server ended with {server.returncode}")

    @staticmethod
    def _start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(HERE / "soak.py"), *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _follow(self, lineage: str) -> None:
        """Start one process of a lineage after the other."""
        rng = random.Random(f"{self.seed} {lineage}")
        generation = 0
        while (left := self.stop - time.monotonic()) > 2.0:
            generation += 1
            settings = Settings(
                url=self.url,
                folder=str(self.folder / lineage),
                events=self.events.path,
                lineage=lineage,
                key=f"{lineage}-{generation}",
                seconds=left if lineage == "steady" else min(left, rng.uniform(10.0, 25.0)),
                seed=rng.randrange(10**9),
                born=self.born,
                defect=self.defect,
            )
            killed_after = rng.uniform(3.0, 12.0) if lineage in ("killed", "thrown") and rng.random() < 0.8 else None
            self._live(settings, killed_after)

    def _live(self, settings: Settings, killed_after: float | None) -> None:
        process = subprocess.Popen(worker.command(settings), start_new_session=True)
        try:
            status = process.wait(killed_after)
        except subprocess.TimeoutExpired:
            self.events.add("kill", key=settings.key)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._wait_for_group(process.pid)
            return
        if status:
            self.events.add("violation", what=f"a process ended with {status}", key=settings.key)

    def _wait_for_group(self, group: int) -> None:
        """Wait for the children of a killed process, which are killed too: two who ask for the same texts both pay."""
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)
        self.events.add("violation", what="children of a killed process are still there")

    def _harm(self, lineage: str) -> tuple[Harm, random.Random]:
        rng = random.Random(f"{self.seed} harm {lineage}")
        return Harm(self.url, self.folder / lineage, lineage, self.events, rng), rng

    def _bend(self) -> None:
        harm, rng = self._harm("bent")
        while until(self.stop, 1.0, rng):
            harm.bend_values(20)

    def _throw_away(self) -> None:
        harm, rng = self._harm("thrown")
        while until(self.stop, 15.0, rng):
            harm.throw_away()


def report(soak: Soak) -> list[str]:
    """Print what was done and how the books stand; give what does not hold."""
    events = soak.events.read()
    sent = pickle.loads(soak.record.read_bytes())
    ledger = Ledger(sent, events)
    reports = [event for event in events if event["kind"] == "report"]
    totals: Counter[str] = sum((Counter(event["counts"]) for event in reports), Counter())
    kinds = Counter(event["kind"] for event in events)
    print(f"{len(reports)} processes ended well and {kinds['kill']} were killed; of those that ended:")
    print("  " + ", ".join(f"{what} {n:,}" for what, n in sorted(totals.items())))
    print(f"harm: {kinds['damage']} values bent, {kinds['lost cache']} caches thrown away")
    faults = Counter(request.fault for request in sent if request.fault)
    print(f"{len(sent):,} requests, of which {sum(faults.values()):,} went wrong on purpose:")
    print("  " + ", ".join(f"{what} {n}" for what, n in sorted(faults.items())))
    print(f"{ledger.once:,} texts could be kept once; what was billed beyond that:")
    print("  " + ", ".join(f"{what} {n:,}" for what, n in sorted(ledger.causes.items())))
    violations = [
        f"{event['what']} ({event.get('key', event['pid'])})" for event in events if event["kind"] == "violation"
    ]
    violations += ledger.violations + unharmed_in_trouble(events, harmed="thrown")
    violations += memory_grew(next((e["memory"] for e in reports if e["key"] == "steady-1"), []))
    if not totals["rows"]:
        violations.append("no row was checked")
    return violations


def memory_grew(samples: list[float]) -> list[str]:
    """Compare the second half of a process's life with the first; the beginning, when it fills up, is left out."""
    first, second = samples[len(samples) // 4 : len(samples) // 2], samples[len(samples) // 2 :]
    if not first:
        return ["the steady process did not report its memory"]
    before, after = statistics.median(first), statistics.median(second)
    print(f"memory of the steady process: {before:.0f} MB, then {after:.0f} MB")
    return [f"memory grew from {before:.0f} to {after:.0f} MB"] if after > 1.1 * before + MORE_MB else []


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of what is done and what fails (default: 0)")
    parser.add_argument("--defect", default="", choices=["", *DEFECTS], help="plant a defect, which must be found")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker.run(Settings.read(given.worker))
        return 0
    if given.record:
        serve(given.serve, given.record)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), given.minutes, given.seed, given.defect)
        soak.run()
        violations = report(soak)
    for violation in violations[:20]:
        print(f"VIOLATION {violation}"[:1000])
    print(f"{len(violations)} violations" if violations else "everything holds")
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
