"""Comparison of models on a task: quality, cost, time and size of each."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from embedkit_core.common.errors import BudgetError, ConfigurationError, EmbedKitError
from embedkit_core.common.formatting import count_noun, escape_markdown, shorten_model_name
from embedkit_core.common.html_tables import html_table
from embedkit_core.common.money import exact_decimal, format_usd
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import check_choice, check_integer
from embedkit_core.common.vectors import DType
from embedkit_core.costs.tokens import cost_of
from embedkit_core.costs.tracker import track_usage
from embedkit_core.embedder import Embedder
from embedkit_core.observability.progress import ProgressOption, check_progress
from embedkit_core.tools import ranking
from embedkit_core.tools.charts import QualityPoint, draw_comparison, save
from embedkit_core.tools.comparison_plan import log_estimates, variant_settings
from embedkit_core.tools.extra import check_installed
from embedkit_core.tools.report import Report, write_report
from embedkit_core.tools.tables import number_columns, quiet, table, to_csv, wrap
from embedkit_core.tools.tasks import Task
from embedkit_core.tools.verdict import comparison_verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAIN_MEASURE = "nDCG@10"
KS = (10, 100)  # of recall@k
METHOD = (
    "Documents are ranked by exact cosine similarity (Hamming distance for packed bits). Intervals: bootstrap over the "
    "queries. p: paired randomization test with Holm's correction. Tokens and the cost of the documents are estimates "
    'without a cache; "billed now" and "seconds" are those of this run, in which the cache may have had vectors.'
)
LEGEND = "scores: mean and 95 % confidence interval; p: p-value of the difference to the best model"
DTYPES: tuple[DType, ...] = get_args(DType)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model with its dimensions and dtype, and its results.

    Token counts and `corpus_usd` are estimated without billing data, so that a model has the same values in every row
    and every run.

    Attributes:
        model: The model, as provider:model.
        dimensions: Number of dimensions, None if unknown.
        dtype: Type of the vectors.
        space: Name of the vector space.
        scores: Mean and confidence interval of each measure.
        usage: Usage of this comparison.
        seconds: Duration of embedding documents and queries.
        bytes_per_vector: Size of the numbers of one vector.
        usd_per_million: Price of a million tokens, None if unknown.
        corpus_tokens: Tokens of all documents.
        query_tokens: Tokens of all queries.
        truncated: Number of texts truncated to the model's limit.
        p_value: Probability of a difference in nDCG@10 to the best model at least this large by chance, after Holm's
            correction. None for the best model.
        error: Why the model failed, None if it did not.
        over_budget: Whether it failed because of a budget.
        settings: Arguments of the embedder.
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
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may contain an API key

    @property
    def name(self) -> str:
        """The model, its dimensions and its dtype."""
        return f"{self.model} {self.dimensions or '?'} {self.dtype}"

    @property
    def quality(self) -> float:
        """Mean nDCG@10; NaN if the model failed."""
        return self.scores[MAIN_MEASURE].mean if MAIN_MEASURE in self.scores else float("nan")

    @property
    def corpus_usd(self) -> Decimal | None:
        """Estimated cost of all documents without a cache, None if the price is unknown."""
        return None if self.usd_per_million is None else cost_of(self.corpus_tokens, self.usd_per_million)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidates of a comparison, the best first; those that failed are last."""

    task: Task
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the highest nDCG@10."""
        return self.candidates[0]

    def table(self, *, width: int | None = None) -> str:
        """Return the results as a Markdown table, with the validity of the scores.

        Args:
            width: Hide columns and wrap notes until lines have at most so many characters. None for no limit.
        """
        notes = "".join(f"\n{escape_markdown(name)}: {note}" for name, note in self._notes())
        cells = table(*self._table_cells(), width)
        return wrap(f"{escape_markdown(self.task.name)}: {self._size}\n{LEGEND}\n\n{cells}{notes}", width)

    def _repr_html_(self) -> str:
        """Return the table and its notes for a notebook."""
        head, rows = self._table_cells()
        title = f"{self.task.name}: {self._size}; {LEGEND}"
        notes = "".join(f"<div>{html.escape(f'{name}: {note}')}</div>" for name, note in self._notes())
        return html_table(head, rows, number_columns(rows), caption=title) + notes

    @property
    def _size(self) -> str:
        size = count_noun(len(self.task.documents), "document")
        return f"{size}, {count_noun(len(self.task.queries), 'query', 'queries')}; {self.task.validity}"

    def _table_cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the head of the table and a row for each candidate that did not fail."""
        measures = list(next((c.scores for c in self.candidates if c.scores), {}))
        costs = ["p", "corpus tokens", "corpus cost", "billed now", "seconds", "bytes/vector"]
        rows = [_cells(candidate, measures) for candidate in self.candidates if candidate.error is None]
        return ["model", "dimensions", "dtype", *measures, *costs], rows

    def _notes(self) -> list[tuple[str, str]]:
        """Return the names of candidates with what is to be noted of them."""
        failed = [(c.name, c.error) for c in self.candidates if c.error is not None]
        truncated = [(c.name, c.truncated) for c in self.candidates if c.truncated]
        return failed + [(name, f"{count_noun(n, 'text')} truncated to the model's limit") for name, n in truncated]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON-compatible values."""
        return {
            "task": self.task.name,
            "documents": len(self.task.documents),
            "queries": len(self.task.queries),
            "validity": self.task.validity,
            "models": [_candidate_data(candidate) for candidate in self.candidates],
        }

    def to_csv(self) -> str:
        """Return all numbers as CSV, one line per candidate."""
        return to_csv([_candidate_data(candidate) for candidate in self.candidates])

    def chart(self, path: str | PathLike[str]) -> None:
        """Write a chart of quality against cost and dimensions to a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        save(self._figure(), path)

    def report(self, path: str | PathLike[str]) -> None:
        """Write a self-contained HTML report: verdict, table, chart, method, and links to all numbers.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        head, rows = self._table_cells()
        failures = {c.name: c.error for c in self.candidates if c.error is not None}
        report = Report(
            title=f"Models compared on {self.task.name}",
            verdict=comparison_verdict(self.candidates, MAIN_MEASURE, len(self.task.queries)),
            head=head,
            rows=rows,
            notes=[LEGEND, *(f"{name}: {note}" for name, note in self._notes() if name not in failures)],
            failures=[f"{name}: {error}" for name, error in failures.items()],
            method=[self._size, METHOD, *(f"{c.name}: vector space {c.space}" for c in self.candidates if c.space)],
            downloads={"comparison.csv": self.to_csv(), "comparison.json": json.dumps(self.to_dict(), indent=1)},
        )
        write_report(path, report, self._figure())

    def _figure(self) -> Figure:
        points = []
        for candidate in self.candidates:
            if candidate.error is None:
                usd, score = candidate.corpus_usd, candidate.scores[MAIN_MEASURE]
                cost = None if usd is None else float(usd)
                variant = (candidate.model, candidate.dtype, candidate.dimensions)
                points.append(QualityPoint(*variant, cost, score.mean, score.low, score.high))
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
    budget_name: str | None = None,
    progress: ProgressOption = None,
    log: Callable[[str], object] = quiet,
    **settings: Any,
) -> Comparison:
    """Embed the texts of a task with each model, rank documents by exact cosine similarity, and score the rankings.

    Every model is compared with all `dimensions` and `dtypes`. Smaller vectors are derived from the widest ones, so
    that each text is billed once. A variant that cannot be derived, and a model that fails, get an `error`.

    Args:
        models: Model names, or mappings of `Embedder` arguments.
        task: Documents, queries and judgements.
        dimensions: Dimensions to compare; None is the model's default.
        dtypes: Dtypes to compare.
        ks: Depths of recall@k.
        seed: Seed of the confidence intervals and p-values.
        budget_usd: Budget of all models together.
        budget_name: The name of a budget that several processes share, as in `track_usage`.
        progress: As in `Embedder`.
        log: Called with progress lines, first with the estimated cost of each model.
        settings: `Embedder` arguments for all models. With `cache=False`, vectors are kept in memory for this
            comparison.

    Raises:
        ConfigurationError: `models` is empty, or another argument is not valid. Nothing was sent.
        MissingExtraError: The extra `tools` is not installed. Nothing was sent.
    """
    check_installed("compare()")
    _check_arguments(task, dimensions, dtypes, ks, seed)
    check_progress(progress)
    listed: Iterable[Any] = [models] if isinstance(models, (str, Mapping)) else models
    arguments_of_models = [dict(model) if isinstance(model, Mapping) else {"model": model} for model in listed]
    if not arguments_of_models:
        raise ConfigurationError("models: at least one model is required, such as 'openai:text-embedding-3-small'.")
    results: list[tuple[Candidate, Mapping[str, ranking.Numbers]]] = []
    variants_of_models = [
        variant_settings({**settings, **arguments}, dimensions, dtypes, arguments) for arguments in arguments_of_models
    ]
    for first, *_ in variants_of_models:
        log_estimates(first, task, log)
    with track_usage(budget_usd=budget_usd, budget_name=budget_name):
        for variants in variants_of_models:
            is_embedded = False
            for variant in variants:
                try:
                    results.append(_evaluate(variant, task, ks, seed, progress, log, is_embedded=is_embedded))
                    is_embedded = True
                except EmbedKitError as error:
                    name = str(variant["model"])
                    log(f"{name}: {error}")
                    failed = Candidate(
                        name, variant["dimensions"], variant["dtype"], error=str(error), settings=variant
                    )
                    over = isinstance(error, BudgetError)
                    results.append((replace(failed, usage=error.usage or Usage(), over_budget=over), {}))
    return Comparison(task, tuple(_ranked(results, seed)))


def _check_arguments(
    task: Task, dimensions: Sequence[int | None], dtypes: Sequence[DType], ks: Sequence[int], seed: int
) -> None:
    """Check what is used only after texts are sent and billed.

    Raises:
        ConfigurationError: A value is not valid.
    """
    if not isinstance(task, Task):
        raise ConfigurationError(
            f"task: must be a Task (got {type(task).__name__}). Use for example load_beir({task!r:.60})."
        )
    for name, values, example in (("dimensions", dimensions, (512, 256)), ("dtypes", dtypes, DTYPES), ("ks", ks, KS)):
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise ConfigurationError(f"{name}: must be a sequence (got {values!r:.80}). Example: {name}={example[:2]}.")
    for width in dimensions:
        if width is not None:
            check_integer("dimensions", width, 1)
    for dtype in dtypes:
        check_choice("dtypes", dtype, DTYPES)
    for k in ks:
        check_integer("ks", k, 1)
    check_integer("seed", seed, 0)


def _evaluate(
    variant: Mapping[str, Any],
    task: Task,
    ks: Sequence[int],
    seed: int,
    progress: ProgressOption,
    log: Callable[[str], object],
    *,
    is_embedded: bool,
) -> tuple[Candidate, Mapping[str, ranking.Numbers]]:
    """Return a candidate and the values of each measure by query.

    Args:
        is_embedded: Whether another variant of the model is embedded, from which this one must be derived.
    """
    documents, queries = list(task.documents.values()), list(task.queries.values())
    with Embedder(**variant) as embedder:
        if is_embedded and embedder.estimate(documents).texts_to_send:
            raise ConfigurationError(
                f"dimensions={variant['dimensions']}, dtype={variant['dtype']!r} cannot be derived from the cached "
                "vectors according to the provider's documentation, and all texts would be billed again. To allow "
                "this, list it as a separate model: {'model': ..., 'dimensions': ..., 'dtype': ...}."
            )
        if is_embedded:
            embedder.truncation_logged.set()  # for the first variant, with the same texts
        start = time.perf_counter()
        with track_usage() as usage:
            document_result = embedder.embed(documents, progress=progress)
            query_result = embedder.embed(queries, input_type="query")
        seconds = time.perf_counter() - start
        uncached = embedder.without_cache()
        dtype, vectors = variant["dtype"], document_result.vectors
        positions, _ = ranking.rank(
            ranking.comparable(vectors, dtype),
            ranking.comparable(query_result.vectors, dtype),
            max(ranking.MIN_DEPTH, *ks),
        )
        values = ranking.evaluate(task, positions, ks)
        candidate = Candidate(
            model=embedder.model,
            dimensions=embedder.dimensions,
            dtype=dtype,
            space=embedder.space,
            scores=ranking.means(values, seed),
            usage=usage.usage,
            seconds=seconds,
            bytes_per_vector=vectors.shape[1] * vectors.itemsize,
            usd_per_million=embedder.price.usd_per_million,
            corpus_tokens=uncached.estimate(documents, calibrated=False).tokens,
            query_tokens=uncached.estimate(queries, input_type="query", calibrated=False).tokens,
            truncated=len(document_result.truncated) + len(query_result.truncated),
            settings=variant,
        )
        log(f"{candidate.name}: {MAIN_MEASURE} {candidate.scores[MAIN_MEASURE]}, {seconds:.1f} s, {usage}")
        return candidate, values


def _ranked(results: Sequence[tuple[Candidate, Mapping[str, ranking.Numbers]]], seed: int) -> list[Candidate]:
    """Return the candidates ordered by quality, with p-values of their difference to the best."""
    ordered = sorted(results, key=lambda pair: (pair[0].error is not None, -np.nan_to_num(pair[0].quality, nan=-1.0)))
    _, best = ordered[0]
    others = [values for _, values in ordered[1:] if MAIN_MEASURE in values]
    ps = ranking.holm([ranking.p_value(best[MAIN_MEASURE], values[MAIN_MEASURE], seed) for values in others])
    ranked = [candidate for candidate, _ in ordered]
    return [ranked[0], *(replace(c, p_value=p) for c, p in zip(ranked[1:], ps, strict=False)), *ranked[1 + len(ps) :]]


def _cells(candidate: Candidate, measures: Sequence[str]) -> list[str]:
    p = "" if candidate.p_value is None else f"{candidate.p_value:.3f}"
    return [
        shorten_model_name(candidate.model, 40),
        str(candidate.dimensions or "?"),
        candidate.dtype,
        *(str(candidate.scores[measure]) if measure in candidate.scores else "" for measure in measures),
        p,
        f"{candidate.corpus_tokens:,}",
        format_usd(candidate.corpus_usd),
        format_usd(candidate.usage.cost_usd),
        f"{candidate.seconds:,.1f}",
        f"{candidate.bytes_per_vector:,}",
    ]


def _candidate_data(candidate: Candidate) -> dict[str, Any]:
    usd = candidate.corpus_usd
    return {
        "model": candidate.model,
        "dimensions": candidate.dimensions,
        "dtype": candidate.dtype,
        "space": candidate.space,
        "scores": {name: {"mean": s.mean, "low": s.low, "high": s.high} for name, s in candidate.scores.items()},
        "p_value": candidate.p_value,
        "corpus_tokens": candidate.corpus_tokens,
        "query_tokens": candidate.query_tokens,
        "truncated": candidate.truncated,
        "corpus_usd": None if usd is None else exact_decimal(usd),
        "seconds": candidate.seconds,
        "bytes_per_vector": candidate.bytes_per_vector,
        "usage": candidate.usage.to_dict(),
        "error": candidate.error,
    }
