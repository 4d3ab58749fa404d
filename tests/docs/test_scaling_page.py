"""The examples of docs/scaling-out.md with workers of Ray and Dask, and the figures of docs/planning-a-billion.md."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.ray_cluster import local_ray
from support.reader import reader_environment

from embedkit_core import models

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "scaling-out.md").read_text(encoding="utf-8")
PLAN = (DOCS / "planning-a-billion.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
pytestmark = pytest.mark.timeout(240)


def example(section):
    """Return the code of a section, and the output that it shows."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.M | re.S))
    return compile(code, f"docs: {section}", "exec"), re.findall(r"^ *print\(.*\)  # (.*)$", code, re.M)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    with reader_environment(tmp_path, monkeypatch) as server:
        yield server


def test_the_examples_of_ray_print_what_they_show(reader, capsys):
    code, shown = example("Ray")
    with local_ray():
        exec(code, {})
    assert capsys.readouterr().out.splitlines() == shown
    assert reader.billed_texts == Counter([*(f"paragraph {n}" for n in range(1000)), "Cats purr."])


def test_the_example_of_dask_prints_what_it_shows(reader, capsys):
    code, shown = example("Dask")
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == shown
    assert reader.billed_texts == Counter(f"line {n}" for n in range(1000))


def rows(table):
    """Return the cells of each row of a Markdown table, without the header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def number(cell):
    return float(cell.replace(",", ""))


def name(cell):
    return re.match(r"`(\w+)`", cell)[1]


COMMON, BY_PROVIDER, RESULTS = (rows(table) for table in re.findall(r"(?:^\|.*\n)+", PLAN, re.M))


def test_the_figures_of_one_machine_follow_from_the_limits():
    seconds = float(re.search(r"takes (\d+) µs of CPU", PAGE)[1]) / 1e6
    (table,) = re.findall(r"(?:^\|.*\n)+", SECTIONS["One machine is usually enough"], re.M)
    for _, tokens, _, texts, share in rows(table):
        per_second = number(tokens) / 500 / 60
        assert f"{per_second:,.0f}" == texts
        assert share == f"{per_second * seconds * 100:.2g} %"


@pytest.mark.parametrize("column", range(3))
def test_the_results_of_the_plan_follow_from_its_inputs(column):
    values = {name(row[0]): number(row[1]) for row in COMMON}
    values |= {name(row[0]): number(row[1 + column]) for row in BY_PROVIDER}
    for cell, formula, *shown in RESULTS:
        values[name(cell)] = eval(formula.strip("`"), {}, values)
        decimals = len(shown[column].partition(".")[2])
        assert f"{values[name(cell)]:,.{decimals}f}" == f"{number(shown[column]):,.{decimals}f}", cell
    assert values["requests_needed"] < values["requests_per_minute"]
    assert values["redis_usd"] > 30 * values["usd"]


def test_the_inputs_of_the_plan_are_those_of_the_catalogue_and_of_other_pages():
    found = {name(row[0]): [number(cell) for cell in row[1:4]] for row in BY_PROVIDER}
    small, lite = (models(name=model)[0] for model in ("text-embedding-3-small", "voyage-4-lite"))
    assert found["usd_per_million"] == [float(model.usd_per_million) for model in (small, small, lite)]
    assert found["dimensions"] == [small.dimensions, small.dimensions, lite.dimensions]
    memory = dict(re.findall(r"^\| (\d+) \| ([\d,]+) \|", (DOCS / "sharing-a-cache.md").read_text("utf-8"), re.M))
    assert found["redis_bytes"] == [number(memory[f"{dimensions:.0f}"]) for dimensions in found["dimensions"]]


def test_the_loop_of_the_plan_embeds_the_parts_that_have_no_result(reader):
    (loop,) = re.findall(r"^```bash\n(.*?)^```", PLAN, re.M | re.S)
    Path("texts").mkdir()
    for part in ("first", "second"):
        pq.write_table(pa.table({"text": [f"{part} {n}" for n in range(10)]}), f"texts/{part}.parquet")
        command = f'{sys.executable} -m embedkit_core "$@"'
        subprocess.run(["bash", "-ec", f"rag-embedkit() {{ {command}; }}\n{loop}"], check=True)
        assert pq.read_metadata(f"vectors/{part}.parquet").num_rows == 10
    assert reader.billed_texts == Counter(f"{part} {n}" for part in ("first", "second") for n in range(10))
    assert not list(Path("cache").iterdir())
