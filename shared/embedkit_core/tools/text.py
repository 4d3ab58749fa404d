"""Tables for people, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.types import markdown


def quiet(line: str) -> None:
    """Say nothing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a table whose columns are as wide as what is in them; what looks like a number stands to the right."""
    columns = range(len(head))
    return markdown(
        head, rows, [c for c in columns if rows and all(not r[c] or r[c].lstrip("$-")[:1].isdigit() for r in rows)]
    )
