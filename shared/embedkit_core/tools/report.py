"""Self-contained HTML reports, without scripts or external resources."""

from __future__ import annotations

import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from embedkit_core import __version__
from embedkit_core.common.html_tables import html_table
from embedkit_core.tools.tables import number_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { font-size: 1.1rem; border-left: .25rem solid #0072b2; padding: .5rem 1rem; background: var(--soft); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: var(--soft); } tbody tr:last-child td { border-bottom: 0; }
figure { margin: 0; padding: .5rem; max-width: 48rem; background: #fff; border: 1px solid var(--line);
  border-radius: .4rem; }
figure svg { display: block; width: 100%; height: auto; }
footer { margin-top: 2rem; font-size: .875rem; opacity: .8; }
"""


@dataclass(frozen=True, slots=True)
class Report:
    """Content of a report: plain texts, which are escaped.

    Attributes:
        title: The heading.
        verdict: The result in a few sentences.
        head: The heads of the table's columns.
        rows: The cells of each row.
        notes: Lines below the table.
        failures: What was not measured and why; folded.
        method: How the numbers were measured, one sentence or more in each line.
        downloads: Texts of the numbers by file name.
    """

    title: str
    verdict: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    failures: Sequence[str]
    method: Sequence[str]
    downloads: Mapping[str, str]


def write_report(path: str | PathLike[str], report: Report, figure: Figure) -> None:
    """Write a report with the verdict, the table, the figure as SVG, the method, and links to all numbers."""
    title = escape(report.title)
    table = html_table(report.head, report.rows, number_columns(report.rows))
    links = ", ".join(_download(name, text) for name, text in report.downloads.items())
    versions = f"rag-embedkit {__version__}, Python {platform.python_version()}, {platform.system()}"
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="verdict">{escape(report.verdict)}</p>
<h2>Results</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Results">
{table}
</div>
{_paragraphs(report.notes)}
{_details(report.failures)}
<p>All numbers: {links}</p>
<h2>Chart</h2>
<figure role="img" aria-label="{title}">{_svg(figure)}</figure>
<h2>How it was measured</h2>
{_paragraphs(report.method)}
<footer>{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {escape(versions)}</footer>
</body>
</html>
"""
    Path(path).write_text(page, encoding="utf-8")


def _paragraphs(lines: Sequence[str]) -> str:
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines)


def _details(failures: Sequence[str]) -> str:
    if not failures:
        return ""
    items = "".join(f"<li>{escape(failure)}</li>" for failure in failures)
    return f"<details><summary>Not measured: {len(failures):,}</summary><ul>{items}</ul></details>"


def _download(name: str, text: str) -> str:
    kind = "application/json" if name.endswith(".json") else "text/csv"
    label = Path(name).suffix[1:].upper()
    return f'<a download="{escape(name)}" href="data:{kind};charset=utf-8,{quote(text)}">{label}</a>'


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
