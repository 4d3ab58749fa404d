"""Self-contained HTML reports, without scripts or external resources."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: 13px; }
figure { margin: 2rem 0; } svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { figure { background: #fff; } }
"""


def write_report(
    path: str | PathLike[str], title: str, table: str, figures: Sequence[Figure], numbers: Mapping[str, Any]
) -> None:
    """Write a report with the table, the figures as SVG, and all numbers as JSON."""
    data = html.escape(json.dumps(numbers, indent=1))
    pictures = "".join(f"<figure>{_svg(figure)}</figure>" for figure in figures)
    Path(path).write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><pre>{html.escape(table)}</pre>{pictures}"
        f"<details><summary>All numbers</summary><pre>{data}</pre></details></html>\n",
        encoding="utf-8",
    )


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
