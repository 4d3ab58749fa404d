"""The catalogue: every row can be believed, and a slip of the pen finds the row it meant."""

import json
from decimal import Decimal
from importlib.resources import files

import pytest

from embedkit_core import Embedder, catalogue
from embedkit_core.providers import provider_names
from embedkit_core.types import Limits, ModelInfo

RAW = json.loads(files("embedkit_core.catalogue").joinpath("models.json").read_text(encoding="utf-8"))
FIELDS = {
    "provider": str,
    "name": str,
    "dimensions": int,
    "allowed_dimensions": (dict, list),
    "request_texts": int,
    "request_tokens": int,
    "text_tokens": int,
    "usd_per_million": str,
    "status": str,
    "source": str,
}
UNKNOWN_ALLOWED = {"dimensions", "request_tokens", "text_tokens", "usd_per_million"}
each_raw_row = pytest.mark.parametrize("raw", RAW["models"], ids=lambda raw: raw["name"])
each_row = pytest.mark.parametrize("row", catalogue.rows(), ids=lambda row: row.name)


@each_raw_row
def test_a_row_has_these_fields_of_these_kinds_and_no_others(raw):
    assert raw.keys() == FIELDS.keys()
    for name, kind in FIELDS.items():
        value = raw[name]
        if value is None:
            assert name in UNKNOWN_ALLOWED, name
        else:
            assert isinstance(value, kind), name
            assert not isinstance(value, bool), name
    assert isinstance(raw["allowed_dimensions"], list) or raw["allowed_dimensions"].keys() == {"min", "max"}


@each_raw_row
def test_a_row_says_where_it_was_read(raw):
    assert RAW["sources"][raw["source"]].strip()
    assert "20" in RAW["prices"]  # the year in which they were read


@each_row
def test_a_rows_dimensions_are_among_those_it_allows(row):
    assert isinstance(row, ModelInfo)
    assert row.allowed_dimensions
    assert row.dimensions in row.allowed_dimensions
    assert min(row.allowed_dimensions) >= 1


@each_row
def test_a_rows_limits_fit_into_each_other(row):
    assert isinstance(row.limits, Limits)
    assert row.limits.texts >= 1
    assert row.limits.text_tokens is None or row.limits.text_tokens >= 1
    if row.limits.tokens is not None and row.limits.text_tokens is not None:
        assert row.limits.text_tokens <= row.limits.tokens


@each_row
def test_a_rows_price_is_exact_and_plausible(row):
    if row.usd_per_million is not None:
        assert type(row.usd_per_million) is Decimal
        assert 0 <= row.usd_per_million < 10


@each_row
def test_a_rows_provider_is_installed_and_its_status_known(row):
    assert row.provider in provider_names()
    assert row.status in {"current", "legacy", "preview", "deprecated"}


def test_no_model_is_listed_twice():
    names = [(row.provider, row.name) for row in catalogue.rows()]
    assert len(set(names)) == len(names)


@each_row
def test_a_name_finds_its_row_with_and_without_its_provider(row):
    assert catalogue.find(row.name, row.provider) is row
    assert catalogue.find(row.name) == row
    assert catalogue.find(row.name, "local") is None
    assert catalogue.find(row.name.upper()) is None


@each_row
def test_a_slip_of_the_pen_finds_the_name_it_meant(row):
    for slip in (row.name[1:], row.name[:-1], row.name.replace("embedding", "embeding"), row.name.replace("-", "_", 1)):
        assert catalogue.near(slip) == f"{row.provider}:{row.name}"


def test_a_name_that_is_far_from_all_is_not_guessed_at():
    assert catalogue.near("nomic-embed-text:latest") is None
    assert catalogue.near("") is None
    assert catalogue.near("text-embedding-3-smal", "local") is None


@each_row
def test_facts_follow_the_name_to_any_address(row):
    model = f"{row.provider}:{row.name}"
    here = Embedder(model, api_key="x", cache=False)
    there = Embedder(model, base_url="http://localhost:1/v1", cache=False)
    for made in (here, there):
        assert (made.dimensions, made.provider.limits) == (row.dimensions, row.limits)
        assert made.explain("x").usd_per_million == row.usd_per_million
