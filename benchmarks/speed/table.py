"""The rows of the result and how they are printed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Results = dict[str, list[dict[str, Any]]]

HEADINGS = ("what", "best peer", "by hand", "ours", "ratio", "goal", "met")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was measured, the compared values, and whether the goal is met."""

    what: str
    ours: str
    peer: str = ""
    hand: str = ""
    ratio: str = ""
    figure: str = ""
    met: bool | None = None  # None: no goal

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the columns."""
        met = {True: "yes", False: "**no**", None: ""}[self.met]
        return (self.what, self.peer, self.hand, self.ours, self.ratio, self.figure, met)


def median(results: Results, name: str, field: str) -> float | None:
    """Return the median of a field over the rounds; None without results."""
    values = [result[field] for result in results.get(name, []) if field in result]
    return statistics.median(values) if values else None


def failure(results: Results, name: str) -> str:
    """Return why a measurement has no result."""
    return next((f"fails: {result['failed']}" for result in results.get(name, []) if "failed" in result), "")


def shown(value: float | None, unit: str) -> str:
    """Return a number with three significant digits and its unit."""
    if value is None:
        return ""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def compared(
    what: str,
    results: Results,
    field: str,
    unit: str,
    *,
    ours: str,
    hand: str | None = None,
    peers: Sequence[str] = (),
    scale: float = 1.0,
    at_most: float | None = None,
) -> Row:
    """Compare a field with the code by hand, or with the best peer if there is none.

    `at_most` is the goal of the ratio to the code by hand.
    """
    names = {name: median(results, name, field) for name in (ours, hand or "", *peers)}
    values = {name: None if value is None else value * scale for name, value in names.items()}
    measured = {name: value for name in peers if (value := values[name]) is not None}
    best = min(measured, key=lambda name: measured[name], default=None)
    mine, yardstick = values[ours], values[hand or ""]
    ratio = mine / yardstick if mine is not None and yardstick else None
    faster = f"; peer {measured[best] / mine:.1f}x" if best is not None and mine else ""
    return Row(
        what=what,
        ours=shown(mine, unit) or failure(results, ours),
        hand=shown(yardstick, unit),
        peer=f"{shown(measured[best], unit)} ({best.removeprefix('peer-')})" if best is not None else "",
        ratio=(f"{ratio:.2f}x by hand" if ratio is not None else "") + (faster if ratio is not None else faster[2:]),
        figure=f"{at_most:g}x by hand" if at_most is not None else "",
        met=None if at_most is None else ratio is not None and round(ratio, 2) <= at_most,
    )


def bounded(row: Row, value: float | None, at_most: float | None, unit: str) -> Row:
    """Return a row whose goal is a bound of its value instead of its ratio."""
    if at_most is None:
        return row
    return replace(row, figure=f"<= {shown(at_most, unit)}", met=value is not None and value <= at_most)


def markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    return markdown_table(HEADINGS, [row.cells() for row in rows])


def markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---" for _ in headings], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
