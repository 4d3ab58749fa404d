"""How fast a model answers here: one request at a time against several, and how many are worth having in flight."""

from __future__ import annotations

import itertools
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
from embedkit_core.common.usage import MILLION, Usage
from embedkit_core.common.validation import check_integer
from embedkit_core.costs.tracker import format_cost, track_usage
from embedkit_core.embedder import Embedder
from embedkit_core.tools.charts import SpeedPoint, draw_bench, save
from embedkit_core.tools.report import write_report
from embedkit_core.tools.tables import quiet, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (100, 500, 1000)
MOST = 64  # requests in flight that are tried
WORTH = 1.1  # of the speed before, for twice the requests in flight
QUERIES = 20
FIRST = 4  # texts for the connection and the model's start
MARK = "5f3a9c1e"  # in the texts that are estimated, as long as those of texts that are new
WORDS = ("time", "people", "water", "house", "world", "school", "state", "family", "night", "story", "money", "point")


@dataclass(frozen=True, slots=True)
class Run:
    """One job: so many texts, at so many requests in flight."""

    texts: int
    concurrency: int
    seconds: float
    usage: Usage

    @property
    def texts_per_second(self) -> float:
        """The speed."""
        return self.texts / self.seconds


class BenchCost(NamedTuple):
    """What a benchmark will spend at most, estimated; USD are None where the price is unknown."""

    model: str
    tokens: int
    cost_usd: Decimal | None

    def __str__(self) -> str:
        cost = "price unknown" if self.cost_usd is None else f"about {format_cost(self.cost_usd)}"
        return f"{self.model}: up to {self.tokens:,} tokens in all, {cost}"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What was measured: jobs one request at a time and at `concurrency`, the search for that, and lone queries."""

    model: str
    concurrency: int
    runs: tuple[Run, ...]
    search: tuple[Run, ...]
    query_seconds: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)

    def speed_up(self, texts: int) -> float:
        """Give how many times faster a job of this size is than one request at a time."""
        seconds = {run.concurrency: run.seconds for run in self.runs if run.texts == texts}
        return seconds[1] / seconds[self.concurrency]

    def latency(self, percentile: float) -> float:
        """Give the seconds that a lone query takes at most in so many of a hundred cases."""
        return float(np.percentile(self.query_seconds, percentile))

    def table(self) -> str:
        """Give tables in Markdown, and the setting to use."""
        head = ["texts", "in flight", "seconds", "texts a second", "speed-up", "requests", "tokens", "cost"]
        rows = [
            [
                f"{run.texts:,}",
                str(run.concurrency),
                f"{run.seconds:.2f}",
                f"{run.texts_per_second:,.0f}",
                "" if run.concurrency == 1 else f"{self.speed_up(run.texts):.1f}x",
                f"{run.usage.requests:,}",
                f"{run.usage.tokens:,}",
                format_cost(run.usage.cost_usd),
            ]
            for run in self.runs
        ]
        tried = ", ".join(f"{run.concurrency}: {run.texts_per_second:,.0f}" for run in self.search)
        lone = ", ".join(f"p{p} {self.latency(p) * 1000:,.0f} ms" for p in (50, 90, 99))
        return (
            f"{self.model}\n\n{table(head, rows)}\n\na lone query: {lone}\n"
            f"texts a second by requests in flight: {tried}\nuse max_concurrency={self.concurrency}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Give all numbers, as JSON has them."""

        def listed(run: Run) -> dict[str, Any]:
            return {
                "texts": run.texts,
                "concurrency": run.concurrency,
                "seconds": run.seconds,
                "texts_per_second": run.texts_per_second,
                "usage": run.usage.to_dict(),
            }

        return {
            "model": self.model,
            "max_concurrency": self.concurrency,
            "runs": [listed(run) for run in self.runs],
            "search": [listed(run) for run in self.search],
            "query_seconds": {f"p{p}": self.latency(p) for p in (50, 90, 99)},
            "usage": self.usage.to_dict(),
        }

    def chart(self, path: str | PathLike[str]) -> None:
        """Draw the speeds, into a PNG, SVG or PDF file."""
        save(self._figure(), path)

    def report(self, path: str | PathLike[str]) -> None:
        """Write one HTML file with tables, chart and numbers, which needs nothing beside it."""
        write_report(path, f"Speed of {self.model}", self.table(), [self._figure()], self.to_dict())

    def _figure(self) -> Figure:
        jobs, search = (
            [SpeedPoint(run.texts, run.concurrency, run.texts_per_second) for run in runs]
            for runs in (self.runs, self.search)
        )
        return draw_bench(self.model, self.concurrency, jobs, search)


def bench(
    model: str,
    *,
    sizes: int | Sequence[int] = SIZES,
    texts: Sequence[str] | None = None,
    most: int = MOST,
    max_batch_texts: int | None = 32,
    log: Callable[[str], object] = quiet,
    **settings: Any,
) -> BenchResult:
    """Measure a model at this account: jobs of these sizes, one request at a time and at a good concurrency.

    Nothing comes from a cache, and every text is new, so that all is paid for: `say` is told beforehand what that will
    be. Texts are of ordinary words, or made of `texts`. `max_batch_texts` bounds a request, so that there are several.
    `settings` are an embedder's further arguments.
    """
    sizes = _checked(sizes)
    settings = {**settings, "cache": False, "max_batch_texts": max_batch_texts}
    sample = Embedder(model, **settings)
    log(str(estimate_cost(sample, sizes, most=most, texts=texts)))
    make, largest = _maker(texts), max(sizes)
    bounds = _bounds(sample, most)
    with track_usage() as usage:
        sample.embed(make(FIRST))
        waits = [_timed(lambda: sample.embed_query(make(1)[0])) for _ in range(QUERIES)]
        search = _search(model, make(largest), bounds, settings, log, make)
        chosen = _chosen(search)
        runs = []
        for size, bound in itertools.product(sizes, dict.fromkeys((1, chosen))):
            runs.append(_job(model, make(size), bound, settings))
            log(f"{size:,} texts at {bound} in flight: {runs[-1].texts_per_second:,.0f} texts a second")
    sample.close()
    return BenchResult(sample.model, chosen, tuple(runs), tuple(search), tuple(waits), usage.usage)


def estimate_cost(
    embedder: Embedder, sizes: int | Sequence[int] = SIZES, *, most: int = MOST, texts: Sequence[str] | None = None
) -> BenchCost:
    """Say what a benchmark of this embedder's model will spend at most.

    Raises:
        ConfigurationError: the sizes name no job.
    """
    sizes = _checked(sizes)
    largest = max(sizes)
    sent = FIRST + QUERIES + largest * len(_bounds(embedder, most)) + 2 * sum(sizes)
    sample = embedder.estimate(_maker(texts, MARK)(largest), calibrated=False).tokens
    tokens, price = ceil(sample * sent / largest), embedder.price.usd_per_million
    return BenchCost(embedder.model, tokens, None if price is None else tokens * price / MILLION)


def _checked(sizes: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes:
        raise ConfigurationError("sizes= names no job; give one such as sizes=(100, 500, 1000)")
    for size in sizes:
        check_integer("sizes", size, 1)
    return sizes


def _bounds(embedder: Embedder, most: int) -> list[int]:
    """Give the requests in flight that are tried: doubled up to `most`, or what the model takes."""
    most = embedder.provider.limits.max_in_flight(most)
    bounds = [1]
    while bounds[-1] * 2 <= most:
        bounds.append(bounds[-1] * 2)
    return bounds


def _search(
    model: str,
    job: list[str],
    bounds: Sequence[int],
    settings: dict[str, Any],
    say: Callable[[str], object],
    make: Callable[[int], list[str]],
) -> list[Run]:
    """Double what is in flight until it is not worth it any more."""
    found: list[Run] = []
    for bound in bounds:
        found.append(_job(model, make(len(job)), bound, settings))
        say(f"{bound} in flight: {found[-1].texts_per_second:,.0f} texts a second")
        if len(found) > 1 and found[-1].texts_per_second < WORTH * found[-2].texts_per_second:
            break
    return found


def _chosen(search: Sequence[Run]) -> int:
    """Give the least in flight that comes within a tenth of the best speed."""
    best = max(run.texts_per_second for run in search)
    return next(run.concurrency for run in search if run.texts_per_second * WORTH >= best)


def _job(model: str, texts: list[str], bound: int, settings: dict[str, Any]) -> Run:
    with Embedder(model, **{**settings, "max_concurrency": bound}) as embedder, track_usage() as usage:
        seconds = _timed(lambda: embedder.embed(texts))
    return Run(len(texts), bound, seconds, usage.usage)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _maker(texts: Sequence[str] | None, always: str | None = None) -> Callable[[int], list[str]]:
    """Give what makes texts that are new each time, or, with a mark they `always` have, the same."""
    rng = random.Random(0)  # noqa: S311 - words

    def make(n: int) -> list[str]:
        mark = always or uuid.uuid4().hex[:8]
        if texts:
            return [f"{texts[i % len(texts)]} {mark} {i}" for i in range(n)]
        return [f"{mark} {i} {' '.join(rng.choices(WORDS, k=50))}" for i in range(n)]

    return make
