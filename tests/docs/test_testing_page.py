"""The examples in docs/testing.md run, and its files are those that are installed and tested."""

import re
from pathlib import Path

import pytest
from support.plugin import EXAMPLE

from embedkit_core import Embedder
from embedkit_core.common import plugins

GUIDE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)


def test_the_guides_examples_run_in_order(acme, monkeypatch):
    monkeypatch.syspath_prepend(acme)
    plugins.registered.cache_clear()
    scope: dict[str, object] = {"__name__": "guide"}
    try:
        for block in BLOCKS:
            exec(compile(block, "docs/testing.md", "exec"), scope)
        assert Embedder("acme:small", cache=False).embed_query("x").shape == (64,)
    finally:
        plugins.registered.cache_clear()
    assert len(BLOCKS) == 8


@pytest.mark.parametrize("name", ["acme_embedkit.py", "acme_cache.py", "test_acme.py"])
def test_the_files_in_the_guide_are_those_that_are_tested(name):
    assert (EXAMPLE / name).read_text(encoding="utf-8") in BLOCKS


def test_the_guide_shows_the_entry_points_of_the_example():
    [shown] = re.findall(r"^```toml\n(.*?)^```", GUIDE, re.M | re.S)
    assert shown.strip() in (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")


def test_the_provider_of_the_guide_has_at_most_20_lines():
    code = (EXAMPLE / "acme_embedkit.py").read_text(encoding="utf-8")
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) <= 20


def test_the_guide_names_every_kind_of_failure_and_every_attribute_of_the_suite():
    from typing import get_args

    from embedkit_core.testing.provider_cases import Failure, ProviderCases

    assert all(f'"{kind}"' in GUIDE for kind in get_args(Failure))
    said = {name for name in vars(ProviderCases) if not name.startswith("_")}
    methods = {"embedder", "requests_of", "requests_before", "assert_same", "differ"}
    assert all(f"`{name}" in GUIDE or f"self.{name}" in GUIDE for name in said - methods)
