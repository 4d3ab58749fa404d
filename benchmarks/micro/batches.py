"""A batch of OpenAI's endpoint: planned, sent and collected, in texts per second, with the memory that this takes.

The server is the one of the tests, in a process of its own. The time until the results can be downloaded is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from embedkit_core import Embedder
from tests.support.openai_batch_server import OpenAIBatchServer

MODEL = "openai:text-embedding-3-small"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    texts = [f"passage {n}: " + "some words of a passage " * 4 for n in range(given.texts)]
    submits, collects, growths = list[float](), list[float](), list[float]()
    with served() as base_url:
        for _round in range(given.rounds):
            with (
                TemporaryDirectory() as folder,
                Embedder(MODEL, base_url=base_url, api_key="test-key", cache=folder) as one,
            ):
                one.provider.documents_base64 = True  # as at OpenAI's own address
                began = time.perf_counter()
                job = one.submit(texts)
                submits.append(given.texts / (time.perf_counter() - began))
                while job.refresh() != "ready":
                    time.sleep(0.05)
                with peak_memory() as peak:
                    began = time.perf_counter()
                    counts = job.collect()
                    collects.append(given.texts / (time.perf_counter() - began))
                growths.append(peak[-1] - peak[0])
                assert counts.done == given.texts, counts
                began = time.perf_counter()
                assert one.embed(texts).usage.cache_hits == given.texts
                read = given.texts / (time.perf_counter() - began)
    print(f"| {given.texts:,} texts x 1536, medians of {given.rounds} | per second | growth of memory |")
    print("| --- | --- | --- |")
    print(f"| planned, written and uploaded | {statistics.median(submits):,.0f} | |")
    mb = statistics.median(growths) / 1e6
    print(f"| downloaded, checked and written to the cache | {statistics.median(collects):,.0f} | {mb:,.0f} MB |")
    print(f"| read from the cache | {read:,.0f} | |")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Yield the address of a server in another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()


def serve(connection: Connection) -> None:
    """Serve until this process is terminated."""
    with OpenAIBatchServer() as server:
        connection.send(server.base_url)
        threading.Event().wait()


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Yield a list with the resident bytes of this process at the beginning, and at the end with the peak."""
    seen, stop = [resident()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            seen[1:] = [max(seen[-1], resident())]

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def resident() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
