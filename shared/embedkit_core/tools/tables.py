"""Markdown tables. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.common.formatting import markdown_table

WORDS = ("", "?", "unknown", "free")  # in place of numbers


def quiet(line: str) -> None:
    """Log nothing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with columns of numbers aligned to the right."""
    return markdown_table(head, rows, number_columns(rows))


def number_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the indices of the columns of numbers."""
    return [index for index, column in enumerate(zip(*rows, strict=True)) if all(map(_is_number, column))]


def _is_number(cell: str) -> bool:
    return cell in WORDS or cell.lstrip("$-")[:1].isdigit()
