"""HTML tables for notebooks and reports, without colors, so that they fit light and dark pages. No I/O."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from decimal import Decimal
from html import escape

from embedkit_core.common.money import format_usd


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = (), *, caption: str = ""
) -> str:
    """Return a table of plain texts, which are escaped; columns at the indices `right` are aligned to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ["right" if n in right else "left" for n in range(len(cells))]
        marked = (
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>\n"

    title = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    start = '<table class="tex2jax_ignore mathjax_ignore">'  # "$" is no formula
    body = "".join(line("td", row) for row in rows)
    return f"{start}\n{title}<thead>\n{line('th', head)}</thead>\n<tbody>\n{body}</tbody>\n</table>"


def html_fields(objects: Sequence[Mapping[str, object]]) -> str:
    """Return a table with a row for each field and a column for each object.

    Args:
        objects: The values by field, all with the same fields. The first field is the head of the table.
    """
    head, *rows = [[name, *(format_value(values[name]) for values in objects)] for name in objects[0]]
    return html_table(head, rows, range(1, len(objects) + 1))


def format_value(value: object) -> str:
    """Return the value of a field for people: "1,000", "$0.02", "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, Decimal):
        return format_usd(value)
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
