"""Tables for people, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.common.formatting import markdown_table

UNKNOWN = ("", "?", "unknown")  # in place of a number


def quiet(line: str) -> None:
    """Say nothing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a table whose columns are as wide as what is in them; numbers, known or not, stand to the right."""
    columns = range(len(head))
    return markdown_table(head, rows, [c for c in columns if rows and all(_is_number(row[c]) for row in rows)])


def _is_number(cell: str) -> bool:
    return cell in UNKNOWN or cell.lstrip("$-")[:1].isdigit()
