"""From vectors to rankings to scores: exact search, and what rankings are worth by the judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedkit_core.common.types import Vectors
from embedkit_core.tools.tasks import Task

DEPTH = 100
LEAST = 10  # that nDCG@10 and MRR@10 look at
BLOCK, DOCUMENTS = 128, 8192  # queries and documents that are scored at once
DIGITS = 6  # of a cosine; what is below is the noise of float32, which differs with a row's place in a block
RESAMPLES = 2000
Numbers = npt.NDArray[np.float64]


class Score(NamedTuple):
    """A mean over queries, and the 95 % confidence interval of it by the bootstrap."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def comparable(vectors: Vectors, dtype: str) -> Vectors:
    """Give vectors whose dot product ranks as their cosine does, or for packed ones as their Hamming distance."""
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


def rank(documents: Vectors, queries: Vectors, depth: int = DEPTH) -> tuple[npt.NDArray[np.intp], Vectors]:
    """Give for each query the places of the nearest documents and their cosines; of equals the earlier goes first."""
    depth = min(depth, len(documents))
    places = np.empty((len(queries), depth), dtype=np.intp)
    cosines = np.empty((len(queries), depth), dtype=np.float32)
    for start in range(0, len(queries), BLOCK):
        asked = queries[start : start + BLOCK]
        best, where = np.empty((len(asked), 0), np.float32), np.empty((len(asked), 0), np.intp)
        for at in range(0, len(documents), DOCUMENTS):
            scores = np.round(asked @ documents[at : at + DOCUMENTS].T, DIGITS)
            here = np.broadcast_to(np.arange(at, at + scores.shape[1]), scores.shape)
            best, where = _best(np.hstack([best, scores]), np.hstack([where, here]), depth)
        places[start : start + BLOCK], cosines[start : start + BLOCK] = where, best
    return places, cosines


def _best(scores: Vectors, places: npt.NDArray[np.intp], depth: int) -> tuple[Vectors, npt.NDArray[np.intp]]:
    """Give the highest of each row, of equals the first; `places` rise among equal scores."""
    depth = min(depth, scores.shape[1])
    least = np.partition(scores, scores.shape[1] - depth, axis=1)[:, scores.shape[1] - depth]
    top = np.empty((len(scores), depth), dtype=np.intp)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        likely = np.flatnonzero(values >= bound)
        top[row] = likely[np.argsort(-values[likely], kind="stable")[:depth]]
    return np.take_along_axis(scores, top, axis=1), np.take_along_axis(places, top, axis=1)


def judge(task: Task, places: npt.NDArray[np.intp], ks: Sequence[int]) -> dict[str, Numbers]:
    """Give nDCG@10, MRR@10 and recall@k of each query, by ir-measures, in the order of the task's queries."""
    import ir_measures
    from ir_measures import RR, R, nDCG

    measures = {"nDCG@10": nDCG @ 10, "MRR@10": RR @ 10, **{f"recall@{k}": R @ k for k in ks}}
    ids, depth = list(task.documents), places.shape[1]
    # Ties are broken here: the library would break them by the documents' names.
    run = {
        query: {ids[place]: float(depth - rank) for rank, place in enumerate(row.tolist())}
        for query, row in zip(task.queries, places, strict=True)
    }
    qrels = {query: dict(judged) for query, judged in task.judgements.items()}
    numbers = {query: n for n, query in enumerate(task.queries)}
    found = {name: np.zeros(len(numbers)) for name in measures}
    names = {str(measure): name for name, measure in measures.items()}
    for metric in ir_measures.iter_calc(list(measures.values()), qrels, run):
        found[names[str(metric.measure)]][numbers[metric.query_id]] = metric.value
    return found


def with_interval(values: Numbers, seed: int = 0) -> Score:
    """Give the mean of the queries' values and its 95 % interval, by the percentiles of bootstrap means."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[rng.integers(0, n, n)].mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5])
    mean = float(values.mean())
    return Score(mean, min(mean, float(low)), max(mean, float(high)))


def p_value(one: Numbers, other: Numbers, seed: int = 0) -> float:
    """Give how likely a difference in means as large as this is by chance: a paired randomization test, two-sided.

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
    """Correct p-values for how many they are, after Holm."""
    corrected, so_far = [0.0] * len(ps), 0.0
    for rank_, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        so_far = max(so_far, min(1.0, ps[place] * (len(ps) - rank_)))
        corrected[place] = so_far
    return corrected


def means(values: Mapping[str, Numbers], seed: int = 0) -> dict[str, Score]:
    """Give each measure's mean and interval."""
    return {name: with_interval(numbers, seed) for name, numbers in values.items()}
