"""Markdown tables. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.common.formatting import markdown_table, shorten_model_name

WORDS = ("", "?", "unknown", "free")  # in place of numbers
HIDDEN_FIRST = (  # columns that a narrow terminal does not show, in this order
    *("bytes/vector", "seconds", "billed now", "corpus tokens", "recall@100", "recall@10", "MRR@10"),
    *("index", "per month", "corpus", "requests", "tokens", "submitted", "sent", "left", "billed", "reserved"),
    *("possibly billed", "max tokens", "status", "dtype", "p"),
)
MIN_NAME = 16  # characters of a shortened model


def quiet(line: str) -> None:
    """Log nothing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a Markdown table with columns of numbers aligned to the right.

    Args:
        head: The names of the columns.
        rows: The cells of each row.
        width: Hide columns, then shorten models, until lines have at most so many characters. None for no limit.
    """
    text = markdown_table(head, rows, number_columns(rows))
    hidden: list[str] = []
    for name in HIDDEN_FIRST:
        if width is None or _width(text) <= width:
            break
        if name in head:
            hidden.append(name)
            shown = [index for index, column in enumerate(head) if column != name]
            head, rows = [head[index] for index in shown], [[row[index] for index in shown] for row in rows]
            text = markdown_table(head, rows, number_columns(rows))
    if width is not None and (excess := _width(text) - width) > 0 and "model" in head:
        index = head.index("model")
        most = max(MIN_NAME, max(len(row[index]) for row in rows) - excess)
        rows = [[*row[:index], shorten_model_name(row[index], most), *row[index + 1 :]] for row in rows]
        text = markdown_table(head, rows, number_columns(rows))
    return text + (f"\nhidden for the width: {', '.join(hidden)} (--wide shows all)" if hidden else "")


def _width(text: str) -> int:
    return text.find("\n")


def number_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the indices of the columns of numbers."""
    return [index for index, column in enumerate(zip(*rows, strict=True)) if all(map(_is_number, column))]


def _is_number(cell: str) -> bool:
    return cell in WORDS or cell.lstrip("$-")[:1].isdigit()
