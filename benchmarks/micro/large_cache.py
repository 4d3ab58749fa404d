"""Reads of a cache on disk as it grows: microseconds per vector, memory and size.

    python -m benchmarks.micro large_cache --vectors 1000000,10000000 --folder /path/with/20/GB

Each size is measured in new processes. Cold: the pages of the database were dropped from the system's file cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.speed.setting import folder_mb
from embedkit_core import Embedder

WIDTH = 384
BLOCK = 20_000  # texts written at a time
TEXTS = 10_000  # texts of a bulk read
QUERIES = 2_000  # single reads


def embedder(folder: str) -> Embedder:
    address = "http://127.0.0.1:9/v1"  # of no server: all texts are in the cache
    return Embedder("openai:text-embedding-3-small", dimensions=WIDTH, base_url=address, api_key="none", cache=folder)


def names(numbers: Sequence[int]) -> list[str]:
    return [f"text {number} of a large cache" for number in numbers]


def fill(folder: str, n: int) -> float:
    """Write n vectors. Return the seconds."""
    began, writer, rng = time.perf_counter(), embedder(folder), np.random.default_rng(n)
    for first in range(0, n, BLOCK):
        numbers = range(first, min(first + BLOCK, n))
        rows = rng.standard_normal((len(numbers), WIDTH), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        writer.import_vectors(names(numbers), rows, verify=0)
        if first % 1_000_000 == 0:
            print(f"  {first:,} written after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    writer.close()
    return time.perf_counter() - began


def drop_from_file_cache(folder: str) -> None:
    for file in Path(folder).rglob("*.db"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: str, n: int) -> dict[str, float]:
    """Return the microseconds per vector of reads at random places, and the peak memory of this process in MB."""
    rng = random.Random(n)
    bulk, queries = names(rng.sample(range(n), TEXTS)), names(rng.sample(range(n), QUERIES))
    reader = embedder(folder)
    reader.embed_query(queries.pop())
    us: dict[str, float] = {}
    for kind in ("cold", "warm"):
        began = time.perf_counter()
        assert reader.embed(bulk).usage.cache_hits == TEXTS
        us[kind] = (time.perf_counter() - began) / TEXTS * 1e6
    reader.embed(queries)
    taken = []
    for text in queries:
        began = time.perf_counter()
        reader.embed_query(text)
        taken.append((time.perf_counter() - began) * 1e6)
    assert reader.usage.sent == 0
    return {**us, "one hit": statistics.median(taken), "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def in_new_process(folder: str, n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.micro", "large_cache", "--measure", str(n), "--folder", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def filled(folder: str, n: int) -> tuple[str, float]:
    """Return the folder of a cache of n vectors, and the vectors written per second: 0 if it was there."""
    path = Path(folder) / f"{n}"
    if path.with_suffix(".done").exists():
        return str(path), 0.0
    shutil.rmtree(path, ignore_errors=True)
    rate = n / fill(str(path), n)
    path.with_suffix(".done").touch()
    return str(path), rate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vectors", default="1000000,10000000", help="sizes (default: %(default)s)")
    parser.add_argument("--folder", help="where caches are kept for another run (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=5, help="processes per size, by turns (default: %(default)s)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(measure(given.folder, given.measure)))
        return
    with TemporaryDirectory() as temporary:
        sizes = [int(size) for size in given.vectors.split(",")]
        caches = {n: filled(given.folder or temporary, n) for n in sizes}
        each: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
        for _ in range(given.rounds):
            for n, (folder, _) in caches.items():
                drop_from_file_cache(folder)
                each[n].append(in_new_process(folder, n))
        print("| vectors | cold | warm | one hit | peak memory | a vector on disk | written |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for n, (folder, rate) in caches.items():
            middle = {name: statistics.median(one[name] for one in each[n]) for name in each[n][0]}
            size = folder_mb(folder) * 1e6 / n
            times = " | ".join(f"{middle[kind]:.0f} us" for kind in ("cold", "warm", "one hit"))
            written = f"{rate:,.0f}/s" if rate else "before"
            print(f"| {n:,} | {times} | {middle['MB']:.0f} MB | {size:,.0f} bytes | {written} |")
