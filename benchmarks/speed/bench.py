"""Run measurements: one server for all, one process for each, in turn, round after round."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.control import reset, stats
from benchmarks.speed.peers import tiktoken_folder
from benchmarks.speed.setting import Setting
from benchmarks.speed.table import Results, Row

MAX_SECONDS = 180  # seconds for one measurement
NO_LATENCY = {"latency": 0.0, "latency_per_token": 0.0}


@dataclass(frozen=True)
class Measure:
    """A measurement and the server's settings.

    Attributes:
        fresh: use an empty folder each time.
        once: measure in the first round only.
        kill_at: kill the process at this number of billed texts, then run it again.
    """

    setting: Setting
    server: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    once: bool = False
    kill_at: int | None = None


@dataclass(frozen=True)
class Group:
    """Measurements that are compared with each other, and the function that makes their rows."""

    measures: dict[str, Measure]
    rows: Callable[[Results], list[Row]]
    prepare: Callable[["Bench"], None] = lambda bench: None  # noqa: ARG005 - nothing to prepare


class Bench:
    """A running server and a folder for the caches of the clients."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.folder = folder

    def setting(self, client: str, **changes: Any) -> Setting:
        """Return the settings of a measurement with this server."""
        return Setting(client, self.port, **changes)

    def run(self, measure: Measure) -> dict[str, Any]:
        """Measure once; return the result with the server's counts."""
        setting = measure.setting
        if measure.fresh:
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            setting = replace(setting, folder=str(folder))
        reset(self.port, measure.server)
        if measure.kill_at is not None:
            self._kill(setting, measure.kill_at)
        result = self._finish(self._start(setting))
        if measure.fresh:
            shutil.rmtree(str(setting.folder))
        return {**stats(self.port), **result}

    def _start(self, setting: Setting) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks.speed.measure", json.dumps(asdict(setting))]
        environment = os.environ | {"TIKTOKEN_CACHE_DIR": tiktoken_folder(), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def _finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        try:
            output, errors = process.communicate(timeout=MAX_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"failed": f"not finished after {MAX_SECONDS} s"}
        if process.returncode:
            last = (errors.strip() or "no output").splitlines()[-1]
            print(f"    {last[:300]}", file=sys.stderr)
            return {"failed": last.partition(":")[0].rpartition(".")[2][:40]}
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    def _kill(self, setting: Setting, kill_at: int) -> None:
        process = self._start(setting)
        while process.poll() is None and stats(self.port)["billed_texts"] < kill_at:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def run_group(self, group: Group, rounds: int) -> Results:
        """Run the measurements of a group in turn, round after round, so that load affects all."""
        group.prepare(self)
        results: Results = {name: [] for name in group.measures}
        for number in range(rounds):
            order = list(group.measures.items())
            for name, measure in reversed(order) if number % 2 else order:
                if number and measure.once:
                    continue
                result = self.run(measure)
                results[name].append(result)
                summary = {key: value for key, value in result.items() if key in ("wall", "cpu", "p50_us", "failed")}
                print(f"  round {number + 1}: {name}: {summary}", file=sys.stderr, flush=True)
        return results


@contextlib.contextmanager
def running() -> Iterator[Bench]:
    """Start the server; stop it and remove the folder at the end."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed.server"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TIKTOKEN_CACHE_DIR": tiktoken_folder()},
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        with tempfile.TemporaryDirectory(prefix="bench-speed-") as folder:
            yield Bench(port, Path(folder))
    finally:
        server.terminate()
        server.wait()
