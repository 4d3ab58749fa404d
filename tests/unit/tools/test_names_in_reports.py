"""Names with the markup of Markdown, HTML and TeX in tables, charts and reports."""

from decimal import Decimal

import pytest

from embedkit_core import Embedder, track_usage
from embedkit_core.testing import FakeServer
from embedkit_core.tools import Task, bench, choose, compare

NAME = r"a$\frac$b|c`d`<b>e</b>*f*" + "\nand a second line"
SHOWN = r"a$\\frac$b\|c\`d\`\<b>e\</b>\*f\* and a second line"
TASK = Task(NAME, {f"d{i}": f"text {i}" for i in range(12)}, {"q": "text 1"}, {"q": {"d1": 1}})


def cells(line):
    """Return the number of cells of a table's line."""
    return line.replace(r"\|", "").count("|") - 1


def assert_is_table(printed, name):
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({cells(line) for line in lines}) == 1, printed
    assert any(name in line for line in lines[2:]), printed


@pytest.fixture(scope="module")
def comparison():
    server = FakeServer(asymmetric=False, usd_per_million=Decimal("0.1"))
    return compare([f"fake:{NAME}", "fake:plain"], TASK, base_url=server.url, cache=False)


def test_a_name_does_not_break_a_markdown_table(comparison):
    assert_is_table(comparison.table(), SHOWN[-20:])
    assert_is_table(choose(comparison, floor=0).table(), SHOWN[-20:])
    assert comparison.table().splitlines()[0].startswith(f"{SHOWN}: 12 documents, 1 query")
    server = FakeServer()
    with track_usage() as usage, Embedder("fake:a|b", base_url=server.url, cache=False) as embedder:
        embedder.embed(["x"])
    assert_is_table(usage.table(), r"a\|b")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_name_is_no_formula_in_a_chart(comparison, tmp_path, kind):
    comparison.chart(tmp_path / f"chart.{kind}")
    comparison.report(tmp_path / "report.html")
    assert "<b>" not in (tmp_path / "report.html").read_text()
    server = FakeServer()
    speed = bench(f"fake:{NAME}", sizes=8, most=1, base_url=server.url)
    speed.chart(tmp_path / f"bench.{kind}")
    assert speed.table().startswith(f"fake:{SHOWN}\n\n|")
    assert (tmp_path / f"chart.{kind}").stat().st_size > 1000
