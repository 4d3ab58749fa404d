"""Benchmark of a model: sequential and concurrent throughput, query latency, and the best concurrency."""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import ceil
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun, escape_markdown
from embedkit_core.common.money import format_usd
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import check_integer
from embedkit_core.costs.tokens import cost_of
from embedkit_core.costs.tracker import track_usage
from embedkit_core.embedder import Embedder
from embedkit_core.tools.charts import SpeedPoint, draw_bench, save
from embedkit_core.tools.extra import check_installed
from embedkit_core.tools.report import Report, write_report
from embedkit_core.tools.tables import quiet, table, to_csv, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (100, 500, 1000)
MAX_IN_FLIGHT = 64  # requests in flight to try
MIN_SPEED_UP = 1.1  # expected when the number of requests in flight doubles
QUERIES = 20
WARM_UP_TEXTS = 4  # they open the connection and load the model
SAMPLE_PREFIX = "5f3a9c1e"  # of estimated texts, as long as the random prefix of measured texts
METHOD = (
    "Each job embeds new texts without a cache, once. The requests in flight were doubled until the throughput grew by "
    f"less than {MIN_SPEED_UP - 1:.0%}. Latency: {QUERIES} single queries, one after another. The result applies to "
    "this account, this network and this hour."
)
WORDS = ("time", "people", "water", "house", "world", "school", "state", "family", "night", "story", "money", "point")


@dataclass(frozen=True, slots=True)
class Run:
    """One measured job: `texts` texts with at most `concurrency` requests in flight."""

    texts: int
    concurrency: int
    seconds: float
    usage: Usage

    @property
    def texts_per_second(self) -> float:
        """Throughput in texts per second."""
        return self.texts / self.seconds


class BenchCost(NamedTuple):
    """Estimated maximum cost of a benchmark; `cost_usd` is None if the price is unknown."""

    model: str
    tokens: int
    cost_usd: Decimal | None

    def __str__(self) -> str:
        cost = "price unknown" if self.cost_usd is None else f"about {format_usd(self.cost_usd)}"
        return f"{self.model}: up to {count_noun(self.tokens, 'token')} in total, {cost}"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Results of a benchmark.

    Attributes:
        model: The measured model.
        concurrency: The recommended `max_concurrency`.
        runs: Jobs of each size, sequential and at `concurrency`.
        search: Jobs at increasing concurrency that determined `concurrency`.
        query_seconds: Latency of single queries in seconds.
        usage: Usage of the whole benchmark.
    """

    model: str
    concurrency: int
    runs: tuple[Run, ...]
    search: tuple[Run, ...]
    query_seconds: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)

    def speed_up(self, texts: int) -> float:
        """Return the speed-up of a job of this size over one request at a time."""
        seconds = {run.concurrency: run.seconds for run in self.runs if run.texts == texts}
        return seconds[1] / seconds[self.concurrency]

    def latency(self, percentile: float) -> float:
        """Return the percentile (0 to 100) of the query latency, in seconds."""
        return float(np.percentile(self.query_seconds, percentile))

    def table(self, *, width: int | None = None) -> str:
        """Return the results as Markdown, with the recommended setting in the last line.

        Args:
            width: Hide columns and wrap notes until lines have at most so many characters. None for no limit.
        """
        notes = "\n".join(self._notes())
        return wrap(
            f"{escape_markdown(self.model)}\n\n{table(*self._table_cells(), width)}\n\n{notes}\n"
            f"use max_concurrency={self.concurrency}",
            width,
        )

    def _table_cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the head of the table and a row for each job."""
        head = ["texts", "in flight", "seconds", "texts/s", "speed-up", "requests", "tokens", "cost"]
        rows = [
            [
                f"{run.texts:,}",
                str(run.concurrency),
                f"{run.seconds:.2f}",
                f"{run.texts_per_second:,.0f}",
                "" if run.concurrency == 1 else f"{self.speed_up(run.texts):.1f}x",
                f"{run.usage.requests:,}",
                f"{run.usage.tokens:,}",
                format_usd(run.usage.cost_usd),
            ]
            for run in self.runs
        ]
        return head, rows

    def _notes(self) -> list[str]:
        """Return the latency of queries and the search for the concurrency, a line each."""
        tried = ", ".join(f"{run.concurrency}: {run.texts_per_second:,.0f}" for run in self.search)
        latencies = ", ".join(f"p{p} {self.latency(p) * 1000:,.0f} ms" for p in (50, 90, 99))
        return [f"query latency: {latencies}", f"texts/s by requests in flight: {tried}"]

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as JSON-compatible values."""
        return {
            "model": self.model,
            "max_concurrency": self.concurrency,
            "runs": [_run_data(run) for run in self.runs],
            "search": [_run_data(run) for run in self.search],
            "query_seconds": {f"p{p}": self.latency(p) for p in (50, 90, 99)},
            "usage": self.usage.to_dict(),
        }

    def to_csv(self) -> str:
        """Return the measured jobs as CSV, one line per job."""
        return to_csv([{"model": self.model, **_run_data(run)} for run in self.runs])

    def chart(self, path: str | PathLike[str]) -> None:
        """Write a chart of the throughput to a PNG, SVG or PDF file."""
        save(self._figure(), path)

    def report(self, path: str | PathLike[str]) -> None:
        """Write a self-contained HTML report: verdict, table, chart, method, and a link to all numbers."""
        head, rows = self._table_cells()
        largest = max((run for run in self.runs if run.concurrency == self.concurrency), key=lambda run: run.texts)
        verdict = f"Use max_concurrency={self.concurrency}: {largest.texts_per_second:,.0f} texts/s"
        if self.concurrency > 1:
            verdict += f", {self.speed_up(largest.texts):.1f} times the speed of one request at a time"
        report = Report(
            title=f"Speed of {self.model}",
            verdict=f"{verdict}. A query takes {self.latency(50) * 1000:,.0f} ms (median).",
            head=head,
            rows=rows,
            notes=self._notes(),
            failures=[],
            method=[METHOD],
            downloads={"bench.json": json.dumps(self.to_dict(), indent=1)},
        )
        write_report(path, report, self._figure())

    def _figure(self) -> Figure:
        jobs, search = (
            [SpeedPoint(run.texts, run.concurrency, run.texts_per_second) for run in runs]
            for runs in (self.runs, self.search)
        )
        return draw_bench(self.model, self.concurrency, jobs, search)


def _run_data(run: Run) -> dict[str, Any]:
    return {
        "texts": run.texts,
        "concurrency": run.concurrency,
        "seconds": run.seconds,
        "texts_per_second": run.texts_per_second,
        "usage": run.usage.to_dict(),
    }


def bench(
    model: str,
    *,
    sizes: int | Sequence[int] = SIZES,
    texts: Sequence[str] | None = None,
    most: int = MAX_IN_FLIGHT,
    max_batch_texts: int | None = 32,
    log: Callable[[str], object] = quiet,
    **settings: Any,
) -> BenchResult:
    """Measure a model with this account, network and time of day.

    The cache is disabled and every text is new, so all texts are billed.

    Args:
        model: The model, as provider:model.
        sizes: Numbers of texts per job.
        texts: Texts to build the measured texts from; random words if omitted.
        most: Maximum number of requests in flight to try.
        max_batch_texts: Maximum number of texts per request.
        log: Called with progress lines, first with the estimated cost.
        settings: Further arguments of `Embedder`.

    Raises:
        ConfigurationError: An argument is not valid. Nothing was sent.
        MissingExtraError: The extra `tools`, which draws charts, is not installed. Nothing was sent.
    """
    check_installed("bench()")
    sizes = _job_sizes(sizes)
    settings = {**settings, "cache": False, "max_batch_texts": max_batch_texts}
    sample = Embedder(model, **settings)
    log(str(estimate_cost(sample, sizes, most=most, texts=texts)))
    make_texts, largest = _text_factory(texts), max(sizes)
    bounds = _concurrency_steps(sample, most)
    with track_usage() as usage:
        sample.embed(make_texts(WARM_UP_TEXTS))
        latencies = [_seconds(lambda: sample.embed_query(make_texts(1)[0])) for _ in range(QUERIES)]
        search = _search(model, largest, bounds, settings, log, make_texts)
        chosen = _best_concurrency(search)
        runs = []
        for size, bound in itertools.product(sizes, dict.fromkeys((1, chosen))):
            runs.append(_run_job(model, make_texts(size), bound, settings))
            log(f"{count_noun(size, 'text')} at {bound} in flight: {runs[-1].texts_per_second:,.0f} texts/s")
    sample.close()
    return BenchResult(sample.model, chosen, tuple(runs), tuple(search), tuple(latencies), usage.usage)


def estimate_cost(
    embedder: Embedder,
    sizes: int | Sequence[int] = SIZES,
    *,
    most: int = MAX_IN_FLIGHT,
    texts: Sequence[str] | None = None,
) -> BenchCost:
    """Return the estimated maximum cost of a benchmark of this embedder's model.

    Raises:
        ConfigurationError: `sizes` or `most` is not valid.
    """
    sizes = _job_sizes(sizes)
    check_integer("most", most, 1)
    largest = max(sizes)
    sent = WARM_UP_TEXTS + QUERIES + largest * len(_concurrency_steps(embedder, most)) + 2 * sum(sizes)
    sample_tokens = embedder.estimate(_text_factory(texts, SAMPLE_PREFIX)(largest), calibrated=False).tokens
    tokens, price = ceil(sample_tokens * sent / largest), embedder.price.usd_per_million
    return BenchCost(embedder.model, tokens, None if price is None else cost_of(tokens, price))


def _job_sizes(sizes: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes:
        raise ConfigurationError("sizes: contains no job size. Use for example sizes=(100, 500, 1000).")
    for size in sizes:
        check_integer("sizes", size, 1)
    return sizes


def _concurrency_steps(embedder: Embedder, most: int) -> list[int]:
    """Return powers of two up to `most` or the limit of the model."""
    most = embedder.provider.limits.max_in_flight(most)
    bounds = [1]
    while bounds[-1] * 2 <= most:
        bounds.append(bounds[-1] * 2)
    return bounds


def _search(
    model: str,
    size: int,
    bounds: Sequence[int],
    settings: dict[str, Any],
    log: Callable[[str], object],
    make_texts: Callable[[int], list[str]],
) -> list[Run]:
    """Run jobs with increasing concurrency until the throughput stops growing."""
    runs: list[Run] = []
    for bound in bounds:
        runs.append(_run_job(model, make_texts(size), bound, settings))
        log(f"{bound} in flight: {runs[-1].texts_per_second:,.0f} texts/s")
        if len(runs) > 1 and runs[-1].texts_per_second < MIN_SPEED_UP * runs[-2].texts_per_second:
            break
    return runs


def _best_concurrency(search: Sequence[Run]) -> int:
    """Return the lowest concurrency whose throughput is within 10 % of the best."""
    best = max(run.texts_per_second for run in search)
    return next(run.concurrency for run in search if run.texts_per_second * MIN_SPEED_UP >= best)


def _run_job(model: str, texts: list[str], bound: int, settings: dict[str, Any]) -> Run:
    with Embedder(model, **{**settings, "max_concurrency": bound}) as embedder, track_usage() as usage:
        seconds = _seconds(lambda: embedder.embed(texts))
    return Run(len(texts), bound, seconds, usage.usage)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _text_factory(texts: Sequence[str] | None, prefix: str | None = None) -> Callable[[int], list[str]]:
    """Return a function that makes n texts: new ones on each call, or with a fixed `prefix` always the same."""
    rng = random.Random(0)  # noqa: S311 - not for cryptography

    def make_texts(n: int) -> list[str]:
        unique = prefix or uuid.uuid4().hex[:8]
        if texts:
            return [f"{texts[i % len(texts)]} {unique} {i}" for i in range(n)]
        return [f"{unique} {i} {' '.join(rng.choices(WORDS, k=50))}" for i in range(n)]

    return make_texts
