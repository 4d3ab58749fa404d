"""A plain process with blocks of its own, or a driver of Ray with all blocks: reads a `FleetJob`."""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes.worker import Job, Result, embedder_arguments, run_task, start_together
from benchmarks.speed.corpus import vector_of
from benchmarks.speed.measure import Clock

if TYPE_CHECKING:
    from embedkit_core import Embedder

CPUS = 2  # that Ray gets


@dataclass(frozen=True, kw_only=True)
class FleetJob(Job):
    """What a process does. The task is "plain" or "ray".

    Attributes:
        workers: The number of plain processes or of Ray's workers that share the blocks.
        index: The number of a plain process, from 0. It embeds every block whose number is `index` modulo `workers`.
        seeds: The texts are there once for each seed, in an order that depends on it; the copies are interleaved.
        block_rows: The texts of a block.
        threads: The blocks that a process embeds at the same time.
        is_poisoned: The last block has a text that kills its process.
        options: Further arguments of `fleet.ray.embed`.
    """

    workers: int
    index: int = 0
    seeds: list[int] = field(default_factory=lambda: [0])
    block_rows: int = 1000
    threads: int = 4
    is_poisoned: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """Return the texts of all workers."""
        corpus = json.loads(Path(self.corpus).read_bytes())[self.first : self.first + self.n]
        copies = [random.Random(seed).sample(corpus, len(corpus)) for seed in self.seeds]
        texts = [text for row in zip(*copies, strict=True) for text in row]
        if self.is_poisoned:
            from benchmarks.fleet.poison import POISON

            texts.append(POISON)
        return texts

    def embedder(self) -> Embedder:
        """Return the embedder. Its key is in the environment, where workers read it."""
        from benchmarks.fleet.poison import PoisonedEmbedder
        from embedkit_core import Embedder

        make = PoisonedEmbedder if self.is_poisoned else Embedder
        return make(**{**embedder_arguments(self), "api_key": None, "on_error": "raise"})


def plain(job: FleetJob) -> Result:
    """Embed the blocks of a process, after one text of its own."""
    began = time.monotonic()
    from embedkit_core.fleet import ColumnEmbedder

    texts = job.texts()
    blocks = [texts[start : start + job.block_rows] for start in range(0, len(texts), job.block_rows)]
    own = blocks[job.index :: job.workers]
    embed = ColumnEmbedder(job.embedder())
    embed({"text": [f"process {os.getpid()}"]})
    prepared = time.monotonic() - began
    start_together()
    started = time.monotonic()
    with Clock() as clock, ThreadPoolExecutor(job.threads) as pool:
        done = list(pool.map(embed, [{"text": block} for block in own]))
    ended = time.monotonic()
    embed.embedder.close()
    rows = (row for batch in done for row in zip(batch["text"], batch["vector"], strict=True))
    wrong = count_wrong(rows, [text for block in own for text in block])
    return {**clock.result, "prepared": prepared, "started": started, "ended": ended, "wrong": wrong, "failed": {}}


def with_ray(job: FleetJob) -> Result:
    """Embed all blocks by Ray's workers, into Ray's object store."""
    began = time.monotonic()
    import pyarrow as pa
    import ray
    from ray.exceptions import RayError

    from embedkit_core.common.errors import EmbedKitError
    from embedkit_core.fleet.ray import embed

    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False
    texts = job.texts()
    dataset = ray.data.from_arrow(pa.table({"text": texts}))
    embedder = job.embedder()
    prepared = time.monotonic() - began
    start_together()
    started = time.monotonic()
    how = {"workers": job.workers, "threads": job.threads, "block_rows": job.block_rows, **job.options}
    result = {"prepared": prepared, "started": started, "wrong": 0, "failed": {}, "error": ""}
    with Clock() as clock:
        try:
            done = embed(dataset, "text", embedder, **how).materialize()
        except (EmbedKitError, RayError) as error:
            result |= {"failed": {type(error).__name__: 1}, "error": str(error)}
            done = None
    ended = time.monotonic()
    if done is not None:
        batches = done.iter_batches(batch_size=None, batch_format="numpy")
        rows = (row for batch in batches for row in zip(batch["text"], batch["vector"], strict=True))
        result["wrong"] = count_wrong(rows, texts)
    ray.shutdown()
    return {**clock.result, **result, "ended": ended}


def count_wrong(rows: Iterable[tuple[str, Any]], expected: list[str]) -> int:
    """Return the number of rows that are not the vector of their text, that are missing or that are not expected."""
    import numpy as np

    wrong, missing = 0, Counter(expected)
    for text, row in rows:
        wrong += not np.abs(row - vector_of(text)).max() < 1e-6
        missing[text] -= 1
    return wrong + sum(map(abs, missing.values()))


if __name__ == "__main__":
    run_task(FleetJob(**json.loads(sys.argv[1])), {"plain": plain, "ray": with_ray})
