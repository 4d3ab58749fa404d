"""Tables for people, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def quiet(line: str) -> None:
    """Say nothing."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a table whose columns are as wide as what is in them; what looks like a number stands to the right."""
    widths = [max(3, *(len(line[column]) for line in [head, *rows])) for column in range(len(head))]
    numeric = [
        bool(rows) and all(not row[c] or row[c].lstrip("$-")[:1].isdigit() for row in rows) for c in range(len(head))
    ]

    def line(cells: Sequence[str]) -> str:
        padded = zip(cells, widths, numeric, strict=True)
        return f"| {' | '.join(c.rjust(w) if n else c.ljust(w) for c, w, n in padded)} |"

    rule = ["-" * (w - 1) + ":" if n else "-" * w for w, n in zip(widths, numeric, strict=True)]
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, rows)])
