"""Exact search and retrieval measures with confidence intervals and p-values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedkit_core.common.types import Vectors
from embedkit_core.tools.tasks import Task

DEFAULT_DEPTH = 100
MIN_DEPTH = 10  # of nDCG@10 and MRR@10
QUERIES_PER_BLOCK, DOCUMENTS_PER_BLOCK = 128, 8192  # scored in one matrix product
DIGITS = 6  # of a cosine; further digits are float32 noise, which depends on the position in a block
RESAMPLES = 2000
Numbers = npt.NDArray[np.float64]


class Score(NamedTuple):
    """Mean over queries with its 95 % bootstrap confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def comparable(vectors: Vectors, dtype: str) -> Vectors:
    """Return float32 vectors whose dot product ranks like the cosine, or like the Hamming distance of packed bits."""
    if dtype in ("binary", "ubinary"):
        packed = vectors.astype(np.int16) + (128 if dtype == "binary" else 0)
        bits = np.unpackbits(packed.astype(np.uint8), axis=1)
        rows = bits.astype(np.float32) * 2 - 1
    elif dtype == "uint8":
        rows = vectors.astype(np.float32) - 127.5
    else:
        rows = vectors.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


def rank(documents: Vectors, queries: Vectors, depth: int = DEFAULT_DEPTH) -> tuple[npt.NDArray[np.intp], Vectors]:
    """Rank documents by cosine for each query; of equal documents, the earlier one comes first.

    Returns:
        Positions of the documents and their cosines, both of shape (queries, depth).
    """
    depth = min(depth, len(documents))
    positions = np.empty((len(queries), depth), dtype=np.intp)
    cosines = np.empty((len(queries), depth), dtype=np.float32)
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        block = queries[start : start + QUERIES_PER_BLOCK]
        best, best_positions = np.empty((len(block), 0), np.float32), np.empty((len(block), 0), np.intp)
        for first in range(0, len(documents), DOCUMENTS_PER_BLOCK):
            scores = np.round(block @ documents[first : first + DOCUMENTS_PER_BLOCK].T, DIGITS)
            block_positions = np.broadcast_to(np.arange(first, first + scores.shape[1]), scores.shape)
            best, best_positions = _top(np.hstack([best, scores]), np.hstack([best_positions, block_positions]), depth)
        positions[start : start + QUERIES_PER_BLOCK], cosines[start : start + QUERIES_PER_BLOCK] = best_positions, best
    return positions, cosines


def _top(scores: Vectors, positions: npt.NDArray[np.intp], depth: int) -> tuple[Vectors, npt.NDArray[np.intp]]:
    """Return the highest scores of each row and their positions; of equal scores, the first ones.

    `positions` must be ascending among equal scores.
    """
    depth = min(depth, scores.shape[1])
    lowest = np.partition(scores, scores.shape[1] - depth, axis=1)[:, scores.shape[1] - depth]
    top = np.empty((len(scores), depth), dtype=np.intp)
    for row, (values, bound) in enumerate(zip(scores, lowest, strict=True)):
        eligible = np.flatnonzero(values >= bound)
        top[row] = eligible[np.argsort(-values[eligible], kind="stable")[:depth]]
    return np.take_along_axis(scores, top, axis=1), np.take_along_axis(positions, top, axis=1)


def evaluate(task: Task, positions: npt.NDArray[np.intp], ks: Sequence[int]) -> dict[str, Numbers]:
    """Return nDCG@10, MRR@10 and recall@k of each query, computed by ir-measures, in the order of the queries."""
    import ir_measures
    from ir_measures import RR, R, nDCG

    measures = {"nDCG@10": nDCG @ 10, "MRR@10": RR @ 10, **{f"recall@{k}": R @ k for k in ks}}
    ids, depth = list(task.documents), positions.shape[1]
    # Scores by rank: the library would break ties by document id.
    run = {
        query: {ids[position]: float(depth - rank) for rank, position in enumerate(row.tolist())}
        for query, row in zip(task.queries, positions, strict=True)
    }
    qrels = {query: dict(judged) for query, judged in task.judgements.items()}
    numbers = {query: n for n, query in enumerate(task.queries)}
    found = {name: np.zeros(len(numbers)) for name in measures}
    names = {str(measure): name for name, measure in measures.items()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        found[names[str(metric.measure)]][numbers[metric.query_id]] = metric.value
    return found


def with_interval(values: Numbers, seed: int = 0) -> Score:
    """Return the mean of the values and its 95 % interval, from the percentiles of bootstrap means."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5])
    mean = float(values.mean())
    return Score(mean, min(mean, float(low)), max(mean, float(high)))


def p_value(one: Numbers, other: Numbers, seed: int = 0) -> float:
    """Return the p-value of the difference in means: a two-sided paired randomization test.

    Source: Smucker, Allan and Carterette, "A comparison of statistical significance tests for information retrieval
    evaluation", CIKM 2007.
    """
    differences = one - other
    if not differences.any():
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(differences.mean())
    signs = rng.choice(np.array([-1.0, 1.0]), size=(RESAMPLES, len(differences)))
    extreme = int((np.abs((signs * differences).mean(axis=1)) >= observed - 1e-12).sum())
    return (extreme + 1) / (RESAMPLES + 1)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction for multiple comparisons."""
    corrected, largest = [0.0] * len(ps), 0.0
    for n, position in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, ps[position] * (len(ps) - n)))
        corrected[position] = largest
    return corrected


def means(values: Mapping[str, Numbers], seed: int = 0) -> dict[str, Score]:
    """Return the mean and interval of each measure."""
    return {name: with_interval(numbers, seed) for name, numbers in values.items()}
