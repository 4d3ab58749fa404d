"""Models side by side on one's own texts: quality, cost, time and size of each."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit_core.common.errors import BudgetError, ConfigurationError, EmbedKitError
from embedkit_core.common.formatting import count_noun, format_usd, shorten_model_name
from embedkit_core.common.usage import MILLION, Usage
from embedkit_core.common.vectors import DType
from embedkit_core.costs.tracker import format_cost, track_usage
from embedkit_core.embedder import Embedder
from embedkit_core.observability.progress import ProgressOption
from embedkit_core.tools import ranking
from embedkit_core.tools.charts import QualityPoint, draw_comparison, save
from embedkit_core.tools.comparison_plan import announce, rows_of
from embedkit_core.tools.report import write_report
from embedkit_core.tools.tables import quiet, table
from embedkit_core.tools.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAIN = "nDCG@10"
KS = (10, 100)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model at some dimensions and a type, and what came of it; where it failed, `error` says why.

    `over_budget` says that it failed because a budget did not suffice. `usage` is what this comparison took,
    `corpus_usd` what the documents cost where none are cached, None where the price is unknown: it and the tokens are
    counted without the bills, so that a model has the same in every row and every run. `p_value` is how likely so
    large a difference to the best one's nDCG@10 is by chance, corrected after Holm for how many are compared.
    `truncated` counts texts that were cut to the model's limit.
    `bytes_per_vector` are those of the numbers alone.
    """

    model: str
    dimensions: int | None = None
    dtype: DType = "float32"
    space: str = ""
    scores: Mapping[str, ranking.Score] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    bytes_per_vector: int = 0
    usd_per_million: Decimal | None = None
    corpus_tokens: int = 0
    query_tokens: int = 0
    truncated: int = 0
    p_value: float | None = None
    error: str | None = None
    over_budget: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of its embedder; may hold a key

    @property
    def name(self) -> str:
        """The model, its dimensions and its type."""
        return f"{self.model} {self.dimensions or '?'} {self.dtype}"

    @property
    def quality(self) -> float:
        """The mean nDCG@10; NaN where it failed."""
        return self.scores[MAIN].mean if MAIN in self.scores else float("nan")

    @property
    def corpus_usd(self) -> Decimal | None:
        """What the documents cost where none are cached, estimated."""
        return None if self.usd_per_million is None else self.corpus_tokens * self.usd_per_million / MILLION


@dataclass(frozen=True, slots=True)
class Comparison:
    """What models are worth on a task, the best first; those that failed are last."""

    task: Task
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The one with the highest nDCG@10."""
        return self.candidates[0]

    def table(self) -> str:
        """Give a table in Markdown, and what its scores are worth."""
        measures = list(next((c.scores for c in self.candidates if c.scores), {}))
        head = [
            "model",
            "dimensions",
            "type",
            *measures,
            "p",
            "tokens",
            "documents cost",
            "paid now",
            "seconds",
            "bytes a vector",
        ]
        rows = [_cells(contender, measures) for contender in self.candidates if contender.error is None]
        failed = "".join(f"\n{c.name}: {c.error}" for c in self.candidates if c.error is not None)
        failed += "".join(
            f"\n{c.name}: {count_noun(c.truncated, 'text')} cut to the model's limit"
            for c in self.candidates
            if c.truncated
        )
        size = count_noun(len(self.task.documents), "document")
        size += f", {len(self.task.queries):,} {'query' if len(self.task.queries) == 1 else 'queries'}"
        legend = "scores: mean and 95 % confidence interval; p: of the difference to the best, by chance"
        return f"{self.task.name}: {size}; {self.task.validity}\n{legend}\n\n{table(head, rows)}{failed}"

    def to_dict(self) -> dict[str, Any]:
        """Give all numbers, as JSON has them."""
        return {
            "task": self.task.name,
            "documents": len(self.task.documents),
            "queries": len(self.task.queries),
            "validity": self.task.validity,
            "models": [_listed(contender) for contender in self.candidates],
        }

    def to_csv(self) -> str:
        """Give all numbers, a line for each model."""
        rows = [_flat(_listed(contender)) for contender in self.candidates]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def chart(self, path: str | PathLike[str]) -> None:
        """Draw quality against cost and against dimensions, into a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        save(self._figure(), path)

    def report(self, path: str | PathLike[str]) -> None:
        """Write one HTML file with the table, the chart and the numbers, which needs nothing beside it."""
        title = f"Models compared on {self.task.name}"
        write_report(path, title, self.table(), [self._figure()], self.to_dict())

    def _figure(self) -> Figure:
        points = []
        for one in self.candidates:
            if one.error is None:
                usd, score = one.corpus_usd, one.scores[MAIN]
                cost = None if usd is None else float(usd)
                points.append(
                    QualityPoint(one.model, one.dtype, one.dimensions, cost, score.mean, score.low, score.high)
                )
        return draw_comparison(self.task.name, len(self.task.documents), points)


def compare(
    models: str | Mapping[str, Any] | Iterable[str | Mapping[str, Any]],
    task: Task,
    *,
    dimensions: Sequence[int | None] = (None,),
    dtypes: Sequence[DType] = ("float32",),
    ks: Sequence[int] = KS,
    seed: int = 0,
    budget_usd: float | str | Decimal | None = None,
    progress: ProgressOption = None,
    log: Callable[[str], object] = quiet,
    **settings: Any,
) -> Comparison:
    """Embed a task's texts with each model, rank by exact cosine, and judge; each model against itself only.

    A model is a string, or a mapping of an embedder's arguments. Each is tried at all `dimensions` (None for its own)
    and `dtypes`, the widest first, and is paid for once: what cannot be cut from vectors that are there is a row with
    an error, as what fails is. `settings` are arguments for all; with `cache=False` vectors are kept for this one
    comparison. `budget_usd` bounds all models together. `say` is told what will be spent before anything is.

    Raises:
        ConfigurationError: there is no model to compare.
    """
    if not isinstance(task, Task):
        raise ConfigurationError(f"a task is a Task, as load_beir({task!r:.60}) gives one, not {type(task).__name__}")
    models = [models] if isinstance(models, (str, Mapping)) else models
    wanted = [dict(model) if isinstance(model, Mapping) else {"model": model} for model in models]
    if not wanted:
        raise ConfigurationError("compare needs at least one model, such as 'openai:text-embedding-3-small'")
    found: list[tuple[Candidate, Mapping[str, ranking.Numbers]]] = []
    rows = [rows_of({**settings, **arguments}, dimensions, dtypes, arguments) for arguments in wanted]
    for first, *_ in rows:
        announce(first, task, log)
    with track_usage(budget_usd=budget_usd):
        for own in rows:
            paid = False
            for asked in own:
                try:
                    found.append(_tried(asked, task, ks, seed, progress, log, paid=paid))
                    paid = True
                except EmbedKitError as error:
                    name = str(asked["model"])
                    log(f"{name}: {error}")
                    failed = Candidate(name, asked["dimensions"], asked["dtype"], error=str(error), settings=asked)
                    over = isinstance(error, BudgetError)
                    found.append((replace(failed, usage=error.usage or Usage(), over_budget=over), {}))
    return Comparison(task, tuple(_judged(found, seed)))


def _tried(
    asked: Mapping[str, Any],
    task: Task,
    ks: Sequence[int],
    seed: int,
    progress: ProgressOption,
    say: Callable[[str], object],
    *,
    paid: bool,
) -> tuple[Candidate, Mapping[str, ranking.Numbers]]:
    documents, queries = list(task.documents.values()), list(task.queries.values())
    with Embedder(**asked) as embedder:
        if paid and embedder.estimate(documents).texts_to_send:
            raise ConfigurationError(
                f"dimensions={asked['dimensions']}, dtype={asked['dtype']!r} cannot be cut from vectors that are there "
                "as far as anybody documents, and would be paid again; to have that, name it as a model of its own: "
                "{'model': ..., 'dimensions': ..., 'dtype': ...}"
            )
        embedder.has_warned_of_truncation = (
            paid  # of texts that are cut, by the model's first row: they are the same in all
        )
        began = time.perf_counter()
        with track_usage() as usage:
            embedded = embedder.embed(documents, progress=progress)
            searching = embedder.embed(queries, input_type="query")
        rows, asking = embedded.vectors, searching.vectors
        seconds = time.perf_counter() - began
        anew = embedder.without_cache()
        dtype = asked["dtype"]
        places, _ = ranking.rank(
            ranking.comparable(rows, dtype), ranking.comparable(asking, dtype), max(ranking.LEAST, *ks)
        )
        values = ranking.judge(task, places, ks)
        contender = Candidate(
            model=embedder.model,
            dimensions=embedder.dimensions,
            dtype=dtype,
            space=embedder.space,
            scores=ranking.means(values, seed),
            usage=usage.usage,
            seconds=seconds,
            bytes_per_vector=rows.shape[1] * rows.itemsize,
            usd_per_million=embedder.price.usd_per_million,
            corpus_tokens=anew.estimate(documents, calibrated=False).tokens,
            query_tokens=anew.estimate(queries, input_type="query", calibrated=False).tokens,
            truncated=len(embedded.truncated) + len(searching.truncated),
            settings=asked,
        )
        say(f"{contender.name}: {MAIN} {contender.scores[MAIN]}, {seconds:.1f} s, {usage}")
        return contender, values


def _judged(found: Sequence[tuple[Candidate, Mapping[str, ranking.Numbers]]], seed: int) -> list[Candidate]:
    """Order by quality and say how far each is from the best by chance."""
    ordered = sorted(found, key=lambda pair: (pair[0].error is not None, -np.nan_to_num(pair[0].quality, nan=-1.0)))
    _, best = ordered[0]
    others = [values for _, values in ordered[1:] if MAIN in values]
    ps = ranking.holm([ranking.p_value(best[MAIN], values[MAIN], seed) for values in others])
    judged = [contender for contender, _ in ordered]
    return [judged[0], *(replace(c, p_value=p) for c, p in zip(judged[1:], ps, strict=False)), *judged[1 + len(ps) :]]


def _cells(contender: Candidate, measures: Sequence[str]) -> list[str]:
    p = "" if contender.p_value is None else f"{contender.p_value:.3f}"
    return [
        shorten_model_name(contender.model, 40),
        str(contender.dimensions or "?"),
        contender.dtype,
        *(str(contender.scores[measure]) if measure in contender.scores else "" for measure in measures),
        p,
        f"{contender.corpus_tokens:,}",
        format_cost(contender.corpus_usd),
        format_cost(contender.usage.cost_usd),
        f"{contender.seconds:,.1f}",
        f"{contender.bytes_per_vector:,}",
    ]


def _listed(contender: Candidate) -> dict[str, Any]:
    usd = contender.corpus_usd
    return {
        "model": contender.model,
        "dimensions": contender.dimensions,
        "dtype": contender.dtype,
        "space": contender.space,
        "scores": {name: {"mean": s.mean, "low": s.low, "high": s.high} for name, s in contender.scores.items()},
        "p_value": contender.p_value,
        "corpus_tokens": contender.corpus_tokens,
        "query_tokens": contender.query_tokens,
        "truncated": contender.truncated,
        "corpus_usd": None if usd is None else format_usd(usd),
        "seconds": contender.seconds,
        "bytes_per_vector": contender.bytes_per_vector,
        "usage": contender.usage.to_dict(),
        "error": contender.error,
    }


def _flat(listed: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in listed.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = "" if value is None else value
    return flat
