"""Start the processes of a scenario together, kill one of them, and collect their results."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.processes.worker import Job, Result, open_coordinator
from benchmarks.speed import control
from benchmarks.speed.bench import Bench as Server
from benchmarks.speed.corpus import make_more_texts, make_texts
from benchmarks.speed.table import markdown_table

if TYPE_CHECKING:
    from embedkit_core.coordination.port import Coordinator

MAX_SECONDS = 400  # for the processes of one measurement


class Row(NamedTuple):
    """One line of the table: what was measured, the figure, the bar ("" for none), and whether it is met."""

    what: str
    figure: str
    bar: str
    met: bool

    def cells(self) -> tuple[str, ...]:
        met = "met" if self.met else "**not met**"
        return self.what, self.figure, self.bar, met if self.bar else ""


@dataclass(frozen=True)
class Scenario:
    """A function that measures one round, and one that makes the rows from the results of all rounds."""

    measure: Callable[[Bench, int], Result]
    rows: Callable[[list[Result], Bench], list[Row]]
    once: bool = False


class Processes:
    """Processes that have prepared everything and start together."""

    def __init__(self, jobs: Sequence[Job], module: str) -> None:
        self._module = module
        self._running = [self._start(job) for job in jobs]
        try:
            for process in self._running:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"a process ended with exit code {process.wait()} before its start")
        except BaseException:
            self.stop()
            raise
        self._killed: set[int] = set()

    def _start(self, job: Job) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", self._module, json.dumps(asdict(job))]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )

    @property
    def pids(self) -> list[int]:
        """The process ids, also of processes that have ended."""
        return [process.pid for process in self._running]

    def go(self) -> None:
        """Start the measurement."""
        for process in self._running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def kill(self, index: int) -> float:
        """Kill a process by SIGKILL. Return the time."""
        self._killed.add(index)
        self._running[index].kill()
        return time.monotonic()

    def results(self) -> list[Result]:
        """Return the results of the processes that were not killed."""
        end = time.monotonic() + MAX_SECONDS
        results = []
        try:
            for index, process in enumerate(self._running):
                output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
                if index in self._killed:
                    continue
                if process.returncode:
                    raise RuntimeError(f"a process ended with exit code {process.returncode}")
                results.append(json.loads(output.splitlines()[-1]))
        finally:
            self.stop()
        for message in {message for result in results for message in result["warnings"]}:
            print(f"    warning: {message}", file=sys.stderr)
        return results

    def stop(self) -> None:
        """Kill the processes that still run."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.communicate()


class Bench:
    """The server, and the number of processes.

    Attributes:
        port: The server's port.
        n: The number of processes.
        corpus: A file with texts.
        max_seconds_after_kill: From the kill of a process to the end of the others.
        worker: The module that the processes run.
    """

    worker = "benchmarks.processes.worker"
    max_seconds_after_kill = 10.0

    def __init__(self, server: Server, n: int) -> None:
        self.port, self.n = server.port, n
        self._folder = server.folder
        corpus = server.folder / "corpus.json"
        corpus.write_text(json.dumps(make_texts() + make_more_texts()), encoding="utf-8")
        self.corpus = str(corpus)
        self._settings: dict[str, Any] = {}

    @contextlib.contextmanager
    def cache_folder(self, **settings: Any) -> Iterator[str]:
        """Apply settings to the server, and return an empty cache folder that is removed at the end."""
        self._settings = {"latency": 0.1, "latency_per_token": 0.0, **settings}
        folder = tempfile.mkdtemp(dir=self._folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    def job(self, folder: str, n: int, **fields: Any) -> Job:
        """Return the job of a process; see `Job`."""
        return Job(self.port, self.corpus, folder, n, **fields)

    def coordinator(self, folder: str) -> Coordinator:
        """Return the coordinator of the processes with a cache folder."""
        return open_coordinator(folder)

    def reset(self) -> None:
        """Reset what is counted."""
        control.reset(self.port, self._settings)

    def start(self, jobs: Sequence[Job]) -> Processes:
        """Start processes, reset the counts when all are prepared, and let them go."""
        self.reset()
        processes = Processes(jobs, self.worker)
        self.reset()
        processes.go()
        return processes

    def run(self, jobs: Sequence[Job]) -> Result:
        """Run processes to their end; return their totals and the server's counts."""
        return self.totals(self.start(jobs).results())

    def totals(self, results: list[Result]) -> Result:
        """Return the totals of processes with the server's counts."""
        failed: dict[str, int] = {}
        for result in results:
            for name, n in result["failed"].items():
                failed[name] = failed.get(name, 0) + n
        return {
            **control.stats(self.port),
            "wall": max(result["ended"] for result in results) - min(result["started"] for result in results),
            "ended": max(result["ended"] for result in results),
            "cpu": sum(result["cpu"] for result in results),
            "wrong": sum(result["wrong"] for result in results),
            "failed": failed,
            "warnings": sum(len(result["warnings"]) for result in results),
        }

    def billed(self) -> int:
        """Return the texts that the server has billed since the last reset."""
        return int(control.stats(self.port)["billed"])

    def wait_for_billed(self, texts: int) -> None:
        """Wait until the server has billed so many texts."""
        end = time.monotonic() + MAX_SECONDS
        while self.billed() < texts and time.monotonic() < end:
            time.sleep(0.005)


def worst(results: list[Result], *path: str) -> Any:
    """Return the largest value of a field over the rounds."""
    return max(field(result, *path) for result in results)


def field(result: Result, *path: str) -> Any:
    """Return a field of a field of a result."""
    for name in path:
        result = result[name]
    return result


def rights(results: list[Result]) -> str:
    """Return what is wrong with the rows of measurements, "" if nothing is."""
    wrong, failed = (sum(result["wrong"] for result in results), sum(sum(r["failed"].values()) for r in results))
    return f", {wrong} rows wrong, {failed} failed" if wrong or failed else ""


def markdown(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    return markdown_table(("what", "figure", "bar", "met"), [row.cells() for row in rows])
