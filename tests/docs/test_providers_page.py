"""The table of docs/providers.md, and the row that CONTRIBUTING.md shows."""

import re
from pathlib import Path

from support.provider_tables import DOCUMENT, KEYS, written

from embedkit_core.providers.openai.presets import PRESETS
from embedkit_core.providers.registry import provider_class, provider_names

ROOT = Path(__file__).parents[2]
MAX_LINES = 15


def test_the_table_of_the_page_is_that_of_the_code():
    """Written by `python tests/support/provider_tables.py`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(text) == text


def test_every_provider_with_a_key_is_in_the_table_with_its_variables():
    listed = {
        name: KEYS.get(name) or PRESETS[name].key_variables for name in provider_names() if name in {*KEYS, *PRESETS}
    }
    for name in provider_names():
        variable = provider_class(name).key_variable
        assert variable is None or variable == listed[name][0]


def test_the_row_that_contributors_see_is_short_and_is_the_row():
    [diff] = re.findall(r"### Add a server.*?```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    lines = [line.removeprefix("+") for line in diff.splitlines()]
    assert len(lines) <= MAX_LINES
    rows = (ROOT / "shared/embedkit_core/providers/openai/presets.py").read_text("utf-8")
    entries = (ROOT / "pyproject.toml").read_text("utf-8")
    requests = (ROOT / "tests/fixtures/compatible_requests.json").read_text("utf-8")
    shown = [re.sub(r"\s+#.*$", "", line) if "# " in line and "//" not in line else line for line in lines]
    everything = re.sub(r"\s+", "", rows + entries + requests)
    missing = [line for line in shown if re.sub(r"\s+", "", line.split("  #")[0]) not in everything]
    assert [line for line in missing if "*(" not in line] == []
