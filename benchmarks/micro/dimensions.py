"""Cache hits that truncate a longer cached vector to fewer dimensions, against hits that return it as it is.

Nothing is sent. The variants take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np

from embedkit_core import Embedder

MODEL, WIDTH = "openai:text-embedding-3-small", 1536
NO_SERVER = "http://127.0.0.1:9/v1"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    texts = [f"text {n}" for n in range(given.texts)]
    with TemporaryDirectory() as folder:

        def embedder(**settings: object) -> Embedder:
            return Embedder(MODEL, base_url=NO_SERVER, api_key="none", cache=folder, **settings)  # type: ignore[arg-type]

        rows = np.random.default_rng(0).standard_normal((given.texts, WIDTH)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        full, truncated, binary = embedder(), embedder(dimensions=256), embedder(dimensions=256, dtype="ubinary")
        full.import_vectors(texts, rows, verify=0)

        def bulk(one: Embedder) -> Callable[[int], object]:
            return lambda _: one.embed(texts)

        def single(one: Embedder) -> Callable[[int], object]:
            def ask(turn: int) -> None:
                for text in texts[200 * turn : 200 * (turn + 1)]:
                    one.embed([text])

            return ask

        methods = {"in bulk": (bulk, given.texts), "one by one, from disk": (single, 200)}
        kinds = {"full vector": full, "256 of 1536": truncated, "256 of 1536, ubinary": binary}
        print(f"| microseconds per text, median of {given.rounds} | {' | '.join(kinds)} | ratios |")
        print(f"| --- |{' --- |' * (len(kinds) + 1)}")
        for method, (make, n) in methods.items():
            took: dict[str, list[float]] = {kind: [] for kind in kinds}
            for turn in range(given.rounds):
                for kind, one in kinds.items():
                    began = time.perf_counter()
                    make(one)(turn)
                    took[kind].append((time.perf_counter() - began) / n * 1e6)
            medians = [statistics.median(times) for times in took.values()]
            ratios = ", ".join(f"{median / medians[0]:.2f}x" for median in medians[1:])
            print(f"| {method} | {' | '.join(f'{median:.1f}' for median in medians)} | {ratios} |")
