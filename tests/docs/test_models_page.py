"""The tables and the models file of docs/models.md."""

import json
import re
from importlib.resources import files

import jsonschema
from support.known_models import MODULE, module_text
from support.model_tables import DOCUMENT, shown_name, tables, written
from support.rows import check_rows

from embedkit_core import Embedder, models

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_the_tables_of_the_page_are_those_of_the_catalogue():
    """Written by `python tests/support/model_tables.py`."""
    assert re.findall(r"<!-- (\w+) -->\n\|", TEXT) == [*tables()]
    assert written(TEXT) == TEXT


def test_editors_complete_the_models_of_the_catalogue():
    """Written by `python tests/support/known_models.py`."""
    assert module_text() == MODULE.read_text("utf-8")


def check_line(row):
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"| [`{shown_name(row)}`]")]
    assert f"({row.source})" in line
    assert str(row.dimensions) in line
    if row.usd_per_million is not None:
        assert f"[{row.usd_per_million}]({row.price_source})" in line
        assert row.checked_on in line


def test_the_page_lists_every_model_with_its_sources():
    check_rows(models(), check_line)


def test_the_models_file_on_the_page_is_valid_and_works(tmp_path, monkeypatch):
    [shown] = re.findall(r"^```json\n(.*?)^```", TEXT, re.M | re.S)
    schema = json.loads(files("embedkit_core.providers.catalogue").joinpath("schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(shown), schema)
    (tmp_path / "models.json").write_text(shown, encoding="utf-8")
    small, large = models(name="text-embedding-3-small")[0], models(name="text-embedding-3-large")[0]
    monkeypatch.setenv("RAG_EMBEDKIT_MODELS", str(tmp_path / "models.json"))
    cheaper, like, newer = models()[:3]
    assert (str(cheaper.usd_per_million), cheaper.limits) == ("0.015", small.limits)
    assert (like.name, like.dimensions, like.usd_per_million) == ("team-embedder", 3072, large.usd_per_million)
    assert Embedder("voyage-9", api_key="k", cache=False, dimensions=256).dimensions == 256
    assert newer.name == "voyage-9"
