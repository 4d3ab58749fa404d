"""Markdown and CSV tables. No I/O."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from embedkit_core.common.formatting import markdown_table, shorten_model_name

WORDS = ("", "?", "unknown", "free")  # in place of numbers
HIDDEN_FIRST = (  # columns that a narrow terminal does not show, in this order
    *("bytes/vector", "seconds", "billed now", "corpus tokens", "recall@100", "recall@10", "MRR@10"),
    *("index", "per month", "corpus", "requests", "tokens", "submitted", "sent", "left", "billed", "reserved"),
    *("possibly billed", "max tokens", "status", "dtype", "p"),
)
MIN_NAME = 16  # characters of a shortened name
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets run begins with one of these


def quiet(line: str) -> None:
    """Log nothing."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a Markdown table with columns of numbers aligned to the right.

    Args:
        head: The names of the columns.
        rows: The cells of each row.
        width: Hide columns, then shorten models and vector spaces, until lines have at most so many characters. None
            for no limit.
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
    names = next((name for name in SHORTENED if name in head), None)
    if width is not None and (excess := _width(text) - width) > 0 and names is not None:
        index = head.index(names)
        most = max(MIN_NAME, max(len(row[index]) for row in rows) - excess)
        rows = [[*row[:index], SHORTENED[names](row[index], most), *row[index + 1 :]] for row in rows]
        text = markdown_table(head, rows, number_columns(rows))
    note = f"\nhidden for the width: {', '.join(hidden)} (--wide shows all)" if hidden else ""
    return wrap(text + note, width)


def wrap(text: str, width: int | None) -> str:
    """Return a text with at most `width` characters per line, except in tables and longer words. None for no limit."""
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        fits = line.startswith("|") or len(line) <= width
        lines += [line] if fits else textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, nested mappings as columns such as "usage.tokens".

    A text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    if names:
        writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _cell(value)
    return flat


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if isinstance(value, str) and value.startswith(FORMULA):
        try:
            float(value)
        except ValueError:
            return f"'{value}"
    return "" if value is None else value


def _shorten_space(space: str, most: int) -> str:
    """Return a vector space without its middle: the model is at its start, dimensions and dtype are at its end."""
    end = most // 3
    return space if len(space) <= most else f"{space[: most - end - 1]}…{space[-end:]}"


SHORTENED = {"model": shorten_model_name, "vector space": _shorten_space}  # columns of names


def _width(text: str) -> int:
    return text.find("\n")


def number_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the indices of the columns of numbers."""
    return [index for index, column in enumerate(zip(*rows, strict=True)) if all(map(_is_number, column))]


def _is_number(cell: str) -> bool:
    return cell in WORDS or cell.lstrip("$-(")[:1].isdigit()
