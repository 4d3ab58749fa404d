"""Start plain processes or a driver of Ray, and replace or kill a worker."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.fleet.worker import FleetJob
from benchmarks.processes.bench import MAX_SECONDS, Processes
from benchmarks.processes.shared_redis import RedisBench
from benchmarks.speed.bench import Bench as Server
from benchmarks.speed.control import add_texts
from benchmarks.speed.corpus import make_texts
from tests.support.ray_workers import worker_pids
from tests.support.redis_server import RedisServer

TEXTS = 120_000
WAYS = {"plain": "plain processes", "ray": "Ray"}


class FleetBench(RedisBench):
    """The server, a Redis server that is the only cache, and the number of workers."""

    worker = "benchmarks.fleet.worker"

    def __init__(self, server: Server, n: int, redis: RedisServer) -> None:
        super().__init__(server, n, redis)
        texts = make_texts(TEXTS, seed=1)
        Path(self.corpus).write_text(json.dumps(texts), encoding="utf-8")
        add_texts(self.port, texts)

    def jobs(self, way: str, n: int, **fields: Any) -> list[FleetJob]:
        """Return one job for each plain process, or one for the driver of Ray."""
        indices = range(self.n) if way == "plain" else [0]
        return [
            FleetJob(self.port, self.corpus, self.redis.address, n, task=way, workers=self.n, index=index, **fields)
            for index in indices
        ]

    def kill_worker(self, processes: Processes, job: FleetJob) -> Processes | None:
        """Kill a worker by SIGKILL. Return the process that replaces a plain one; Ray replaces its workers itself."""
        if job.task == "ray":
            os.kill(ray_workers(processes.pids[0])[0], signal.SIGKILL)
            return None
        processes.kill(job.index)
        another = Processes([job], self.worker)
        another.go()
        return another


def ray_workers(driver: int) -> list[int]:
    """Return the process ids of the workers of a driver that runs Ray on this machine, as soon as there are any."""
    end = time.monotonic() + MAX_SECONDS
    while time.monotonic() < end:
        if pids := worker_pids(driver):
            return pids
        time.sleep(0.05)
    raise RuntimeError("Ray has no workers")
