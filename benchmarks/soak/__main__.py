"""Soak test: concurrent callers and a failing server for some minutes, then checks of rows, billing and leaks.

    make soak ARGS="--minutes 10 --seed 1 --defect rows"

Threads, event loops, forked and spawned children make queries, bulk calls and streams, cancel them and close embedders.
The server refuses, cuts, delays and garbles requests; processes are killed and stopped, cached values are corrupted,
caches are deleted and overwritten. The exit code is 1 if a check fails: every row is the vector of its text; a text is
billed twice only for a known cause, also by processes that share a folder; they keep one rate limit and one budget;
nothing is open after close(); memory does not grow; every call ends.

`--defect` plants one of the defects in defects.py, which the checks must find.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from benchmarks.record import ROOT
from benchmarks.soak import shared, worker
from benchmarks.soak.damage import CacheDamage, wait_for_turn
from benchmarks.soak.defects import DEFECTS
from benchmarks.soak.ledger import Ledger, unexpected_warnings
from benchmarks.soak.server import main as serve
from benchmarks.soak.settings import BUDGET_SECONDS, SHARED, SHARED_PROCESSES, Events, Settings

# Each lineage has a cache of its own. The process of "steady" runs from start to end, and its memory is checked. The
# processes of "killed" are killed, values in the cache of "corrupted" are damaged, the cache of "deleted" is removed.
# The processes of SHARED share a cache; they are killed, or stopped for some time, in which others take over.
LINEAGES = ("steady", "killed", "corrupted", "deleted", *[SHARED] * SHARED_PROCESSES)
KILLED = ("killed", "deleted", SHARED)
MAX_STOPPED_SECONDS = 15.0
MAX_GROWTH_MB = 16.0  # and 10 %, of the memory in the second half over the first


class Soak:
    """One run: a server, lineages of processes, and two threads that damage caches."""

    def __init__(self, folder: Path, minutes: float, seed: int, defect: str) -> None:
        self.folder = folder
        self.seconds = minutes * 60
        self.seed = seed
        self.defect = defect
        self.events = Events(str(folder / "events"))
        self.record = folder / "record"

    def run(self) -> None:
        arguments = ["--serve", str(self.seed), "--record", str(self.record)]
        server = subprocess.Popen(
            [*worker.PROGRAM, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        self.url = server.stdout.readline().strip()
        self.started = time.monotonic()
        self.stop = self.started + self.seconds
        jobs = [threading.Thread(target=self._run_lineage, args=job) for job in enumerate(LINEAGES)]
        jobs += [threading.Thread(target=self._corrupt), threading.Thread(target=self._delete)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        server.communicate(timeout=120)
        if server.returncode:
            self.events.add("violation", what=f"the server ended with exit code {server.returncode}")

    def _run_lineage(self, number: int, lineage: str) -> None:
        """Run processes of a lineage, one after the other."""
        name = f"{lineage}{number}" if lineage == SHARED else lineage
        rng = random.Random(f"{self.seed} {name}")
        generation = 0
        while (left := self.stop - time.monotonic()) > 2.0:
            generation += 1
            settings = Settings(
                url=self.url,
                folder=str(self.folder / lineage),
                events=self.events.path,
                lineage=lineage,
                key=f"{name}-{generation}",
                seconds=left if lineage == "steady" else min(left, rng.uniform(10.0, 25.0)),
                seed=rng.randrange(10**9),
                started=self.started,
                defect=self.defect,
                children=lineage != SHARED or number == LINEAGES.index(SHARED),
                budget=f"soak {(time.monotonic() - self.started) // BUDGET_SECONDS:.0f}" if lineage == SHARED else "",
            )
            is_killed = lineage in KILLED and rng.random() < (0.5 if lineage == SHARED else 0.8)
            kill_after = rng.uniform(3.0, 12.0) if is_killed else None
            stop_after = rng.uniform(3.0, 12.0) if lineage == SHARED and rng.random() < 0.5 else None
            self._run_process(settings, kill_after, stop_after, rng.uniform(0.5, MAX_STOPPED_SECONDS))

    def _run_process(
        self, settings: Settings, kill_after: float | None, stop_after: float | None, stopped: float
    ) -> None:
        process = subprocess.Popen(worker.command(settings), cwd=ROOT, start_new_session=True)
        if stop_after is not None:
            self._stop(process, settings.key, stop_after, stopped)
        try:
            status = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            self.events.add("kill", key=settings.key)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._wait_for_group(process.pid)
            return
        if status:
            self.events.add("violation", what=f"a process ended with exit code {status}", key=settings.key)

    def _stop(self, process: subprocess.Popen[bytes], key: str, after: float, seconds: float) -> None:
        """Stop a process for some seconds."""
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            self.events.add("stop", key=key, began=began)
            process.send_signal(signal.SIGCONT)

    def _wait_for_group(self, group: int) -> None:
        """Wait until the children of a killed process have ended: two processes would both pay for the same texts."""
        end = time.monotonic() + 20.0
        while time.monotonic() < end:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)
        self.events.add("violation", what="children of a killed process have not ended")

    def _damage(self, lineage: str) -> tuple[CacheDamage, random.Random]:
        rng = random.Random(f"{self.seed} damage {lineage}")
        return CacheDamage(self.url, self.folder / lineage, lineage, self.events, rng), rng

    def _corrupt(self) -> None:
        damage, rng = self._damage("corrupted")
        while wait_for_turn(self.stop, 1.0, rng):
            damage.corrupt_values(20)

    def _delete(self) -> None:
        damage, rng = self._damage("deleted")
        while wait_for_turn(self.stop, 15.0, rng):
            damage.delete_or_overwrite()


def report(soak: Soak) -> list[str]:
    """Print what happened; return the violations."""
    events = soak.events.read()
    sent = pickle.loads(soak.record.read_bytes())
    ledger = Ledger(sent, events)
    reports = [event for event in events if event["kind"] == "report"]
    totals: Counter[str] = sum((Counter(event["counts"]) for event in reports), Counter())
    kinds = Counter(event["kind"] for event in events)
    print(
        f"processes: {len(reports)} ended, {kinds['kill']} were killed, {kinds['stop']} stopped; counts of those that "
        "ended:"
    )
    print("  " + ", ".join(f"{name} {n:,}" for name, n in sorted(totals.items())))
    print(f"damage: {kinds['damaged value']} values corrupted, {kinds['lost cache']} caches deleted or overwritten")
    faults = Counter(request.fault for request in sent if request.fault)
    print(f"requests: {len(sent):,}, {sum(faults.values()):,} of them with a fault:")
    print("  " + ", ".join(f"{name} {n}" for name, n in sorted(faults.items())))
    print(f"texts: {ledger.billed_once:,} were billed once; causes of repeated billing:")
    print("  " + ", ".join(f"{cause} {n:,}" for cause, n in sorted(ledger.causes.items())))
    violations = [
        f"{event['what']} ({event.get('key', event['pid'])})" for event in events if event["kind"] == "violation"
    ]
    violations += ledger.violations + unexpected_warnings(events, damaged="deleted")
    violations += shared.violations(sent, events, soak.folder / SHARED)
    violations += memory_growth(next((e["memory"] for e in reports if e["key"] == "steady-1"), []))
    if not totals["rows"]:
        violations.append("no row was checked")
    return violations


def memory_growth(samples: list[float]) -> list[str]:
    """Compare the second half of a process's memory samples with the first, without the first quarter (warm-up)."""
    first, second = samples[len(samples) // 4 : len(samples) // 2], samples[len(samples) // 2 :]
    if not first:
        return ["the steady process did not report its memory"]
    before, after = statistics.median(first), statistics.median(second)
    print(f"memory of the steady process: {before:.0f} MB, then {after:.0f} MB")
    return [f"memory grew from {before:.0f} to {after:.0f} MB"] if after > 1.1 * before + MAX_GROWTH_MB else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="duration (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the actions and the faults (default: 0)")
    parser.add_argument("--defect", default="", choices=["", *DEFECTS], help="plant a defect that must be found")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker.run(Settings.from_json(given.worker))
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
    print(f"{len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
