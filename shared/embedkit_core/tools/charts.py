"""Pictures with matplotlib, on figures of their own: no window, no global state; colours of Okabe and Ito."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.formatting import shorten_model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart with any colour vision; source: Okabe and Ito, "Color Universal Design", 2008.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
LINES = ["-", "--", ":", "-."]
KINDS = (".png", ".svg", ".pdf")


class QualityPoint(NamedTuple):
    """Retrieval quality of one model, and what it costs.

    `quality` is the mean nDCG@10 and `low` to `high` its 95 % interval. `cost_usd` is the cost of all documents, None
    if the price is unknown.
    """

    model: str
    dtype: str
    dimensions: int | None
    cost_usd: float | None
    quality: float
    low: float
    high: float


class SpeedPoint(NamedTuple):
    """Speed of one job of `texts` texts with at most `concurrency` requests in flight."""

    texts: int
    concurrency: int
    texts_per_second: float


def new_figure(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """Give a figure with axes side by side.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(1, columns, squeeze=False)
    for one in axes[0]:
        one.grid(visible=True, alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def check_drawing() -> None:
    """Check that charts can be drawn here.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("a chart", "tools") from None


def check_kind(path: str | PathLike[str]) -> None:
    """Check that a chart's name ends with what charts can be.

    Raises:
        ConfigurationError: that is none of .png, .svg and .pdf.
    """
    if Path(path).suffix.lower() not in KINDS:
        raise ConfigurationError(f"a chart's file ends with one of {', '.join(KINDS)}, not {str(path)!r}")


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure as what its name ends with.

    Raises:
        ConfigurationError: that is none of .png, .svg and .pdf.
    """
    check_kind(path)
    figure.savefig(str(path), dpi=150)


def draw_comparison(task: str, documents: int, points: Sequence[QualityPoint]) -> Figure:
    """Draw quality against what the documents cost, and against dimensions."""
    figure, (by_cost, by_size) = new_figure(11, 5.2, 2)
    from matplotlib.ticker import MaxNLocator

    models = list(dict.fromkeys(point.model for point in points))
    dtypes = list(dict.fromkeys(point.dtype for point in points))
    for model, dtype in itertools.product(models, dtypes):
        own = sorted((p for p in points if (p.model, p.dtype) == (model, dtype)), key=lambda p: p.dimensions or 0)
        kind = dtypes.index(dtype)
        look = (COLOURS[models.index(model) % 7], MARKERS[(models.index(model) + 3 * kind) % 7], LINES[kind % 4])
        name = shorten_model_name(model, 30) + (f" {dtype}" if len(dtypes) > 1 else "")
        _points(by_cost, [(p.cost_usd, p) for p in own if p.cost_usd is not None], look, name, "")
        beside = 2 ** (0.05 * kind)  # so that types of the same dimensions can be told apart
        _points(by_size, [((p.dimensions or 0) * beside, p) for p in own], look, name, look[2])
    by_cost.set_xlabel(f"cost of these {documents:,} documents, USD")
    by_cost.xaxis.set_major_formatter(lambda usd, _: f"${usd:g}")
    by_size.set_xlabel("dimensions")
    by_size.set_xscale("log", base=2)
    sizes = sorted({p.dimensions for p in points if p.dimensions})
    by_size.set_xticks(sizes, [str(size) for size in sizes])
    by_size.minorticks_off()
    by_size.set_xlim(min(sizes, default=1) / 1.5, max(sizes, default=1) * 1.5)
    costs = [p.cost_usd for p in points if p.cost_usd is not None]
    if max(costs, default=0) > 0:
        by_cost.set_xlim(-0.05 * max(costs), 1.1 * max(costs))
        by_cost.xaxis.set_major_locator(MaxNLocator(5, prune="lower" if min(costs) > 0 else None))
    else:
        by_cost.set_xticks([0])
    for axes in (by_cost, by_size):
        axes.set_ylabel("nDCG@10, with 95 % interval")
    if points:
        figure.legend(*by_size.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{task}: quality of retrieval")
    return figure


def _points(
    axes: Axes, points: list[tuple[float, QualityPoint]], look: tuple[str, str, str], label: str, line: str
) -> None:
    if not points:
        return
    colour, marker, _ = look
    below = [point.quality - point.low for _, point in points]
    above = [point.high - point.quality for _, point in points]
    axes.errorbar(
        [x for x, _ in points],
        [point.quality for _, point in points],
        yerr=[below, above],
        fmt=f"{marker}{line}",
        color=colour,
        capsize=3,
        label=label,
    )


def draw_bench(model: str, concurrency: int, jobs: Sequence[SpeedPoint], search: Sequence[SpeedPoint]) -> Figure:
    """Draw texts per second, sequential against concurrent, and by how many requests are in flight.

    Args:
        model: The name for the title.
        concurrency: The number of requests in flight that the search has chosen.
        jobs: Jobs of each size, with one request at a time and with `concurrency`.
        search: One job at each number of requests in flight that was tried.
    """
    figure, (by_size, by_bound) = new_figure(11, 4.8, 2)
    sizes = sorted({job.texts for job in jobs})
    for n, (name, bound) in enumerate({"one request at a time": 1, "concurrent": concurrency}.items()):
        own = [job for job in jobs if job.concurrency == bound]
        heights = [job.texts_per_second for job in own]
        places = [sizes.index(job.texts) + (n - 0.5) * 0.38 for job in own]
        bars = by_size.bar(places, heights, 0.36, color=COLOURS[n], label=name if bound == 1 else f"{bound} in flight")
        by_size.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=8)
    by_size.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    by_size.set_xlabel("texts")
    by_size.set_ylabel("texts a second")
    by_size.legend()
    bounds = [job.concurrency for job in search]
    by_bound.plot(bounds, [job.texts_per_second for job in search], "o-", color=COLOURS[0])
    by_bound.axvline(concurrency, color=COLOURS[1], linestyle="--", label=f"chosen: {concurrency}")
    by_bound.set_xscale("log", base=2)
    by_bound.set_xticks(bounds, [str(bound) for bound in bounds])
    by_bound.minorticks_off()
    by_bound.set_xlabel("requests in flight at most")
    by_bound.set_ylabel("texts a second")
    by_bound.set_ylim(bottom=0)
    by_bound.legend()
    figure.suptitle(f"{shorten_model_name(model, 60)}: speed")
    return figure
