"""Overhead of `track_usage()`, with and without a budget, in microseconds per text.

All texts are cache hits, which take the least time. The variants take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np

from embedkit_core import Embedder, track_usage

MODEL, WIDTH = "openai:text-embedding-3-small", 1536


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    texts = [f"text {n}" for n in range(given.texts)]
    rows = np.random.default_rng(0).standard_normal((given.texts, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with TemporaryDirectory() as folder:
        embedder = Embedder(MODEL, base_url="http://127.0.0.1:9/v1", api_key="none", cache=folder)
        embedder.import_vectors(texts, rows, verify=0)
        embedder.embed_query(texts[0])

        def bulk(_: object = None) -> int:
            embedder.embed(texts)
            return len(texts)

        def queries(_: object = None) -> int:
            for _n in range(1000):
                embedder.embed_query(texts[0])
            return 1000

        kinds: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
            "not tracked": contextlib.nullcontext,
            "tracked": track_usage,
            "tracked, with a budget": lambda: track_usage(budget_usd=1),
        }
        print("| microseconds per text, medians | " + " | ".join(kinds) + " | added |")
        print("| --- |" + " --- |" * (len(kinds) + 1))
        for name, work in {"5,000 cached texts in one call": bulk, "a cached query, from memory": queries}.items():
            took: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _round in range(given.rounds):
                for kind, block in kinds.items():
                    began = time.perf_counter()
                    with block():
                        n = work()
                    took[kind].append((time.perf_counter() - began) / n * 1e6)
            medians = [statistics.median(each) for each in took.values()]
            added = ", ".join(f"{median - medians[0]:+.2f}" for median in medians[1:])
            print(f"| {name} | {' | '.join(f'{median:.2f}' for median in medians)} | {added} |")
