"""docs/cutting-the-bill.md: its examples run, and its figures are those of the catalogue and of the endpoints."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from support.embedders import needs_local_model
from support.local_models import save_static
from support.reader import reader_environment

from embedkit_core import Embedder, models
from embedkit_core.providers.batch_endpoint import open_endpoint
from embedkit_core.providers.openai.presets import PRESETS
from embedkit_core.providers.registry import provider_names

PAGE = (Path(__file__).parents[2] / "docs" / "cutting-the-bill.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?", PAGE, re.M | re.S)
WAYS, PROVIDERS = (
    [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M)[:2]
)


def promised(block, shown):
    return [*re.findall(r"^ *print\(.*\)  # (.*)$", block, re.M), *shown.splitlines()]


@needs_local_model
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of model2vec before 0.10
def test_the_examples_print_what_the_page_shows(tmp_path, monkeypatch, capsys):
    scope = {}
    with reader_environment(tmp_path, monkeypatch) as server:
        save_static(tmp_path / "models" / "static")
        for block, shown in BLOCKS:
            exec(compile(block, "docs/cutting-the-bill.md", "exec"), scope)
            assert capsys.readouterr().out.splitlines() == promised(block, shown)
    assert all(n == 1 for n in server.paid_texts.values())
    assert sum(server.paid_texts.values()) == 220


def test_the_figures_of_the_table_follow_from_the_prices_of_the_catalogue():
    large, small = (models(name=f"text-embedding-3-{size}")[0] for size in ("large", "small"))
    prices = [large.usd_per_million, small.usd_per_million, large.usd_per_million_batch, small.usd_per_million_batch]
    figures = [f"${500 * price:.2f}".removesuffix(".00") for price in prices]
    assert figures == ["$65", "$10", "$32.50", "$5"]
    cached, narrow, cheap, batch, local = (way[2] for way in WAYS)
    assert figures[0] in PAGE.partition("| way |")[0]
    assert cached.startswith(f"{figures[0]} once")
    assert f"${5 * large.usd_per_million:.2f} if 1 %" in cached
    assert f"{256 * 4 / 1000:.0f} GB instead of {large.dimensions * 4 / 1000:.1f} GB" in narrow
    assert cheap.startswith(figures[1])
    assert all(figure in batch for figure in figures[2:])
    assert local == "$0"
    assert large.usd_per_million / small.usd_per_million == Decimal("6.5")


def test_the_table_of_providers_has_every_endpoint_with_its_window_discount_and_limits():
    found = {}
    for name in provider_names():
        rows = [row for row in models() if row.provider == name and (row.usd_per_million_batch or "-v3.0" in row.name)]
        if not rows or name == "vertex" or (name in PRESETS and PRESETS[name].batch is None):
            continue
        row = rows[-1]
        with Embedder(f"{name}:{row.name}", api_key="unused", cache=False) as embedder:
            limits = open_endpoint(embedder.provider, "embed-jobs" if name == "cohere" else None).limits
        discount = 0 if name == "cohere" else round(100 * (1 - row.usd_per_million_batch / row.usd_per_million))
        found[f"`{name}:`"] = [
            f"{limits.window / 3600:g} h" if discount else "not stated",
            "none published" if not discount else f"{discount} %" if row.confirmed else f"({discount} %)",
            f"{limits.texts:,}; {limits.line_texts}",
        ]
    assert found == {row[0]: row[1:4] for row in PROVIDERS}
