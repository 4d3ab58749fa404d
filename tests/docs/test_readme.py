"""The examples of each page run in order and print the shown output; links between pages have a target."""

import re
from pathlib import Path

import pytest
from support.limiters import needs_limiters
from support.reader import local_providers, reader_environment
from support.rows import check_rows

from benchmarks import readme_chart

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(
        "README.md",
        "docs/api.md",
        "docs/caching.md",
        "docs/rate-limits.md",
        "docs/troubleshooting.md",
        "docs/providers.md",
        "docs/models.md",
        "docs/langchain.md",
        "docs/costs.md",
        "docs/observability.md",
        "docs/production.md",
        "docs/opentelemetry.md",
        "docs/errors.md",
        "docs/monitoring.md",
        "docs/tools.md",
    ),
    pytest.param("docs/llamaindex.md", marks=needs_limiters),
]
EVERY_DOCUMENT = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def blocks(document):
    """Return the code blocks of a page, each with the output shown below it."""
    shown = r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?"
    return re.findall(shown, (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)


def promised(block):
    """Yield the output in the comments of a block: behind each print or on the line below."""
    for line, below in zip(block.splitlines(), [*block.splitlines()[1:], ""], strict=True):
        if line.lstrip().startswith("print("):
            said = line.partition("  # ")[2] or (below.removeprefix("# ") if below.startswith("# ") else "")
            yield re.split(r", float32|: ", said)[0].strip('"')


@pytest.fixture
def as_a_reader(tmp_path, monkeypatch):
    """An environment with keys, local servers and a temporary cache folder."""
    with reader_environment(tmp_path, monkeypatch) as server, local_providers(monkeypatch):
        yield server


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_examples_run_and_print_what_the_page_shows(document, as_a_reader, capsys):
    from llama_index.core import Settings

    scope: dict[str, object] = {}
    assert len(blocks(document)) >= 3
    try:
        for block, shown in blocks(document):
            exec(compile(block, document, "exec"), scope)
            printed = capsys.readouterr().out.splitlines()
            said = [*promised(block), *shown.splitlines()]
            # An example in an except clause that is not reached prints nothing.
            assert [line for line in said if line in printed] == printed
            assert len(printed) >= len(said) - 1
    finally:
        Settings._embed_model = None


def check_links(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor


def test_the_chart_of_the_readme_shows_the_figures_of_its_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"]({readme_chart.CHART.relative_to(ROOT).as_posix()})" in readme
    assert len(readme_chart.rows(readme)) >= 9
    assert readme_chart.CHART.read_text(encoding="utf-8") == readme_chart.svg(
        readme
    )  # python -m benchmarks.readme_chart


def test_links_between_documents_have_a_target():
    check_rows(EVERY_DOCUMENT, check_links)
