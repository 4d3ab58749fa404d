"""Markdown tables. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.common.formatting import markdown_table

WORDS = ("", "?", "unknown", "free")  # in place of numbers


def quiet(line: str) -> None:
    """Log nothing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with columns of numbers aligned to the right."""
    columns = range(len(head))
    return markdown_table(head, rows, [c for c in columns if rows and all(_is_number(row[c]) for row in rows)])


def _is_number(cell: str) -> bool:
    return cell in WORDS or cell.lstrip("$-")[:1].isdigit()
