"""Draw the chart of the README from its table "Compared with other libraries": `python -m benchmarks.readme_chart`."""

import re
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
CHART = ROOT / "docs" / "images" / "comparison.svg"
WIDTH, ROW, TOP, BAR, LONGEST = 640, 62, 12, 14, 350  # pixels
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; } .title { font-weight: 600; }
.other { fill: #8c959f; } .ours { fill: #0969da; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .other { fill: #6e7681; } .ours { fill: #58a6ff; } }
"""


class Row(NamedTuple):
    """A row of the table: what was measured, and the name, number and text of the other library and of this one."""

    title: str
    other: str
    amount: float
    shown: str
    our_amount: float
    our_shown: str


def rows(readme: str) -> list[Row]:
    """Return the rows of the table."""
    section = readme.partition("## Compared with other libraries")[2].partition("\nMeasured")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "|" in line]
    return [_row(*(cell.strip(" |") for cell in line)) for line in cells[2:]]


def svg(readme: str) -> str:
    """Return the chart: two bars a row, as long as their numbers in proportion; less is better."""
    found = rows(readme)
    height = TOP + ROW * len(found)
    parts = []
    for n, row in enumerate(found):
        y = TOP + ROW * n
        parts.append(f'<text class="title" x="0" y="{y + 10}">{escape(row.title)}</text>')
        other = (row.amount, f"{row.shown}, {row.other}", "other")
        ours = (row.our_amount, f"{row.our_shown}, rag-embedkit", "ours")
        for m, (amount, text, kind) in enumerate((other, ours)):
            top, width = y + 17 + m * (BAR + 3), max(2, round(LONGEST * amount / max(row.amount, row.our_amount)))
            parts.append(f'<rect class="{kind}" x="0" y="{top}" width="{width}" height="{BAR}" rx="2"/>')
            parts.append(f'<text x="{width + 6}" y="{top + 11.5}">{escape(text)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="Comparison with other libraries; shorter bars are better">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _row(title: str, other: str, ours: str) -> Row:
    name = re.search(r"`(.*?)`|^(OpenAI SDK and asyncio)", other)
    assert name, other
    return Row(title, name[1] or name[2], *_amount(other), *_amount(ours))


def _amount(cell: str) -> tuple[float, str]:
    found = re.search(r"([\d.,]+) (?:s|MB|µs|requests)\b", cell) or re.search(r"([\d,]+)$", cell)
    assert found, cell
    return float(found[1].replace(",", "")), found[0]


def main() -> None:
    CHART.parent.mkdir(parents=True, exist_ok=True)
    CHART.write_text(svg((ROOT / "README.md").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
