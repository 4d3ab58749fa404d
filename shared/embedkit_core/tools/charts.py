"""Charts with matplotlib, without windows or global state."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from decimal import Decimal
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun, shorten_model_name
from embedkit_core.common.money import exact_decimal
from embedkit_core.tools.extra import check_installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable with any color vision. Source: Okabe and Ito, "Color Universal Design", 2008.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
LINES = ["-", "--", ":", "-."]
LABEL_SIZE = 9  # points
ABOVE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "frameon": False}  # of a legend
CHART_SUFFIXES = (".png", ".svg", ".pdf")


class QualityPoint(NamedTuple):
    """Retrieval quality and cost of one model.

    Attributes:
        cost_usd: Cost of all documents, None if the price is unknown.
        quality: Mean nDCG@10.
        low: Lower end of its 95 % confidence interval.
        high: Upper end of the interval.
    """

    model: str
    dtype: str
    dimensions: int | None
    cost_usd: float | None
    quality: float
    low: float
    high: float


class SpeedPoint(NamedTuple):
    """Throughput of one job of `texts` texts with at most `concurrency` requests in flight."""

    texts: int
    concurrency: int
    texts_per_second: float


def new_figure(width: float, height: float, rows: int) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, one below the other: they stay readable at 600 px.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_installed("a chart")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(rows, 1)
    for subplot in axes:
        subplot.grid(visible=True, alpha=0.3)
        subplot.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def check_suffix(path: str | PathLike[str]) -> None:
    """Check the suffix of a chart file.

    Raises:
        ConfigurationError: The suffix is not .png, .svg or .pdf.
    """
    if Path(path).suffix.lower() not in CHART_SUFFIXES:
        raise ConfigurationError(
            f"The chart file must end with one of {', '.join(CHART_SUFFIXES)} (got {str(path)!r})."
        )


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure in the format of the file suffix.

    Raises:
        ConfigurationError: The suffix is not .png, .svg or .pdf.
    """
    check_suffix(path)
    figure.savefig(str(path), dpi=150)


def _usd_label(usd: float, _: float) -> str:
    return f"${exact_decimal(Decimal(f'{usd:.6g}'))}"


def draw_comparison(task: str, documents: int, points: Sequence[QualityPoint]) -> Figure:
    """Return a figure of quality against cost and against dimensions."""
    figure, (by_cost, by_size) = new_figure(7, 9, 2)
    from matplotlib.ticker import MaxNLocator

    models = list(dict.fromkeys(point.model for point in points))
    dtypes = list(dict.fromkeys(point.dtype for point in points))
    for model, dtype in itertools.product(models, dtypes):
        series = sorted((p for p in points if (p.model, p.dtype) == (model, dtype)), key=lambda p: p.dimensions or 0)
        n = dtypes.index(dtype)
        style = (COLORS[models.index(model) % 7], MARKERS[(models.index(model) + 3 * n) % 7], LINES[n % 4])
        name = shorten_model_name(model, 30) + (f" {dtype}" if len(dtypes) > 1 else "")
        _plot(by_cost, [(p.cost_usd, p) for p in series if p.cost_usd is not None], style, name, "")
        offset = 2 ** (0.05 * n)  # separates dtypes of the same dimensions
        _plot(by_size, [((p.dimensions or 0) * offset, p) for p in series], style, name, style[2])
    by_cost.set_xlabel(f"cost of {count_noun(documents, 'document')}, USD")
    by_cost.xaxis.set_major_formatter(_usd_label)
    by_size.set_xlabel("dimensions")
    by_size.set_xscale("log", base=2)
    sizes = sorted({p.dimensions for p in points if p.dimensions})
    by_size.set_xticks(sizes, [str(size) for size in sizes])
    by_size.minorticks_off()
    by_size.set_xlim(min(sizes, default=1) / 1.5, max(sizes, default=1) * 1.5)
    costs = [p.cost_usd for p in points if p.cost_usd is not None]
    if max(costs, default=0) > 0:
        by_cost.set_xlim(-0.08 * max(costs), 1.25 * max(costs))
        by_cost.xaxis.set_major_locator(MaxNLocator(5, prune="lower" if min(costs) > 0 else None))
    else:
        by_cost.set_xticks([0])
    for axes in (by_cost, by_size):
        axes.set_ylabel("nDCG@10, with 95 % interval")
    if points:
        figure.legend(*by_size.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{task}: retrieval quality")
    _without_math(figure)
    priced = [p for p in points if p.cost_usd is not None]
    labels = [f"{p.dimensions or '?'}" + (f" {p.dtype}" if len(dtypes) > 1 else "") for p in priced]
    _label_points(by_cost, [(p.cost_usd or 0.0, p.quality) for p in priced], labels)
    return figure


def _plot(
    axes: Axes, points: list[tuple[float, QualityPoint]], style: tuple[str, str, str], label: str, line: str
) -> None:
    if not points:
        return
    color, marker, _ = style
    x, y = [x for x, _ in points], [point.quality for _, point in points]
    below = [max(0.0, point.quality - point.low) for _, point in points]
    above = [max(0.0, point.high - point.quality) for _, point in points]
    axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=color, elinewidth=1, capsize=3, alpha=0.5)
    axes.plot(x, y, f"{marker}{line}", color=color, label=label)


def _label_points(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write a label beside each point, moved up or down until it covers no other; a thin line leads to its point."""
    figure: Any = axes.figure
    figure.draw_without_rendering()  # computes the layout
    per_point = figure.dpi / 72
    centers = axes.transData.transform(list(points)) / per_point if points else []
    low, high = axes.bbox.min / per_point, axes.bbox.max / per_point
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in centers]
    for (x, y), point, label in sorted(zip(centers, points, labels, strict=True), key=lambda entry: -entry[0][1]):
        width = 0.62 * LABEL_SIZE * len(label)
        for distance, side in itertools.product(_distances(), (1, -1)):
            left = x + 10 if side > 0 else x - 10 - width
            box = (left, y + distance - 0.6 * LABEL_SIZE, left + width, y + distance + 0.6 * LABEL_SIZE)
            inside = box[0] >= low[0] and box[1] >= low[1] and box[2] <= high[0] and box[3] <= high[1]
            if inside and not any(_overlaps(box, other) for other in taken):
                taken.append(box)
                axes.annotate(
                    label,
                    point,
                    (10 * side, distance),
                    textcoords="offset points",
                    ha="left" if side > 0 else "right",
                    va="center",
                    fontsize=LABEL_SIZE,
                    arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#777777"} if distance else None,
                    parse_math=False,
                )
                break


def _distances() -> list[float]:
    """Return how far a label may be moved, in points: 0, a step up, a step down, two steps up, ..."""
    steps = [step * LABEL_SIZE / 2 for step in range(1, 16)]
    return [0, *(sign * step for step in steps for sign in (1, -1))]


def _overlaps(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def draw_bench(model: str, concurrency: int, jobs: Sequence[SpeedPoint], search: Sequence[SpeedPoint]) -> Figure:
    """Return a figure of the throughput, sequential and concurrent, and by requests in flight.

    Args:
        model: The name for the title.
        concurrency: The number of requests in flight that the search chose.
        jobs: Jobs of each size, with one request at a time and with `concurrency`.
        search: One job for each number of requests in flight that was tried.
    """
    figure, (by_size, by_bound) = new_figure(7, 8, 2)
    sizes = sorted({job.texts for job in jobs})
    bounds_shown = list(dict.fromkeys((1, concurrency)))
    for n, bound in enumerate(bounds_shown):
        series = [job for job in jobs if job.concurrency == bound]
        heights = [job.texts_per_second for job in series]
        positions = [sizes.index(job.texts) + (n - (len(bounds_shown) - 1) / 2) * 0.38 for job in series]
        bars = by_size.bar(
            positions, heights, 0.36, color=COLORS[n], hatch="//" * n, edgecolor="white", label=f"{bound} in flight"
        )
        by_size.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=LABEL_SIZE)
    by_size.margins(y=0.1)
    by_size.set_xlim(-0.6, len(sizes) - 0.4)
    by_size.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    by_size.set_xlabel("texts per job")
    by_size.set_ylabel("texts per second")
    by_size.legend(**ABOVE)
    bounds = [job.concurrency for job in search]
    by_bound.plot(bounds, [job.texts_per_second for job in search], "o-", color=COLORS[0])
    by_bound.axvline(concurrency, color=COLORS[1], linestyle="--", label=f"chosen: {concurrency}")
    by_bound.set_xscale("log", base=2)
    by_bound.set_xticks(bounds, [str(bound) for bound in bounds])
    by_bound.minorticks_off()
    by_bound.set_xlabel("maximum requests in flight")
    by_bound.set_ylabel("texts per second")
    by_bound.set_ylim(0, 1.1 * max((job.texts_per_second for job in search), default=1))
    by_bound.set_xlim(min(bounds, default=1) / 1.3, max(bounds, default=1) * 1.3)
    by_bound.legend(**ABOVE)
    figure.suptitle(f"{shorten_model_name(model, 60)}: throughput")
    return _without_math(figure)


def _without_math(figure: Figure) -> Figure:
    """Return a figure that shows its texts as they are: a "$" in a name would begin a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    return figure
