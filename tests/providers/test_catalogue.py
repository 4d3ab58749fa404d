"""The model catalogue: its rows, lookups by name, model_info and the user's file."""

import datetime
import json
from decimal import Decimal
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import check_rows

from embedkit_core import ConfigurationError, Embedder, ModelInfo, models
from embedkit_core.common.types import Limits
from embedkit_core.providers import catalogue
from embedkit_core.providers.catalogue.rows import NON_VECTOR_FIELDS, as_json, merge_fields, unknown_model
from embedkit_core.providers.openai.presets import PRESETS
from embedkit_core.providers.registry import provider_class, provider_names

FOLDER = files("embedkit_core.providers.catalogue")
RAW = json.loads(FOLDER.joinpath("models.json").read_text(encoding="utf-8"))
SCHEMA = json.loads(FOLDER.joinpath("schema.json").read_text(encoding="utf-8"))
VALIDATORS = {
    part: jsonschema.Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{part}"})
    for part in ("ours", "model")
}
PROPERTIES = SCHEMA["$defs"]["model"]["properties"]
SMALL = "openai:text-embedding-3-small"
ROWS = models()
APIS = [row for row in ROWS if row.provider != "local"]


def made(model=SMALL, **settings):
    return Embedder(model, **{"api_key": "k", "cache": False, **settings})


# The catalogue file


def valid(raw, part="ours"):
    """Return True if the schema accepts a row of the catalogue ("ours") or of a user ("model")."""
    return VALIDATORS[part].is_valid(raw)


def test_the_catalogue_file_follows_its_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(RAW, SCHEMA)


def test_every_row_of_the_catalogue_is_complete_and_names_its_source():
    assert [raw["name"] for raw in RAW["models"] if not valid(raw) or not valid(raw, "model")] == []


@pytest.mark.parametrize(
    "flaw",
    [
        {"dimension": 5},
        {"usd_per_million": 0.02},
        {"usd_per_million": "a little"},
        {"status": "new"},
        {"source": "somewhere"},
        {"checked_on": "yesterday"},
        {"tokenizer": "cl100k_base"},
        {"space": None},
        {"allowed_dimensions": []},
        {"allowed_dimensions": [1536, 1536]},
        {"dtypes": ["float8"]},
        {"retired": "2026-04-04"},
    ],
    ids=str,
)
def test_the_schema_refuses_a_catalogue_row_with_an_invalid_field(flaw):
    assert not valid(RAW["models"][0] | flaw)


@pytest.mark.parametrize("gone", ["status", "dimensions", "allowed_dimensions", "source", "checked_on", "price_source"])
def test_the_schema_refuses_a_catalogue_row_without_a_required_field(gone):
    assert not valid({name: value for name, value in RAW["models"][0].items() if name != gone})


def test_every_field_is_in_the_schema_and_in_model_info():
    fields = set(PROPERTIES) - {"provider", "name", "like"}
    assert as_json(ROWS[0]).keys() == fields
    assert fields >= NON_VECTOR_FIELDS


def test_every_row_that_models_returns_is_valid_in_a_users_file():
    listed = [{"provider": row.provider, "name": row.name, **as_json(row)} for row in ROWS]
    assert [row["name"] for row in listed if not valid(json.loads(json.dumps(row)), "model")] == []


SAMPLES = [
    *(None, True, False, 0, 1, -1, 0.02, 2**20, 2**20 + 1, 10**13, "", "x", "0.02", "free", "-1", "prefix"),
    *([], [1], [1, "x"], [True], ["float32"], ["float8"], [[1]], {}, {"min": 1}, {"min": 1, "max": 3}),
    *({"min": 0, "max": 3}, {"query": "q"}, {"query": 5}, {"passage": "p"}),
]


def is_accepted(field, value):
    try:
        merge_fields(unknown_model("openai", "m"), {field: value}, "here")
    except ConfigurationError:
        return False
    return True


def test_the_schema_and_the_code_accept_the_same_values():
    fields = sorted(set(PROPERTIES) - {"provider", "name", "like"})
    assert fields
    assert [
        (field, sample)
        for field in fields
        for sample in SAMPLES
        if valid({"provider": "openai", "name": "m", field: sample}, "model") != is_accepted(field, sample)
    ] == []


def check_consistency(row):
    assert row.dimensions in row.allowed_dimensions
    assert min(row.allowed_dimensions) >= 1
    assert row.status in {"current", "legacy", "retired"}
    assert row.provider in provider_names()
    assert isinstance(row.limits, Limits)
    if row.limits.tokens is not None and row.limits.text_tokens is not None:
        assert row.limits.text_tokens <= row.limits.tokens
    if row.cut is not None:
        assert len(row.allowed_dimensions) > 1
    if "binary" in row.dtypes:
        assert row.dimensions % 8 == 0
    if row.cut is None:
        # Cohere, AWS, Alibaba Cloud and Zhipu AI do not document how their models truncate.
        assert len(row.allowed_dimensions) == 1 or row.provider in ("cohere", "bedrock", "dashscope", "zhipu")
    if row.provider == "local":
        assert row.asymmetric == (row.prompts.get("query") != row.prompts.get("document"))
        assert row.source == f"https://huggingface.co/{row.name}"
    for price in (row.usd_per_million, row.usd_per_million_batch):
        assert price is None or (type(price) is Decimal and 0 < price < 10)
    if row.usd_per_million_batch is not None:
        assert row.usd_per_million_batch < row.usd_per_million
    for date in (row.released, row.retired, row.checked_on):
        assert date is None or datetime.date.fromisoformat(date) <= datetime.date.fromisoformat(row.checked_on)


def test_the_fields_of_every_row_are_consistent():
    check_rows(ROWS, check_consistency)


def check_successor(row):
    assert (row.status == "retired") == (row.retired is not None)
    if row.status == "current":
        assert row.successor is None
    if row.successor is not None:
        [successor] = models(row.provider, name=row.successor)
        assert successor.status == "current"


def test_a_successor_is_a_current_model_and_only_retired_models_have_a_retirement_date():
    check_rows(ROWS, check_successor)


def test_models_that_share_a_space_have_the_same_dimensions():
    for space in {row.space for row in ROWS} - {None}:
        members = [row for row in ROWS if row.space == space]
        assert len(members) > 1 or members[0].provider == "bedrock"  # shared by ARNs that stand for the model
        assert len({row.allowed_dimensions for row in members}) == 1


def check_limits_and_price(row):
    assert row.limits.texts <= provider_class(row.provider).default_limits.texts or row.provider == "openai"
    assert row.unit_length is not None
    assert row.limits.text_tokens is not None
    if row.status != "retired" and row.provider not in PRESETS:  # their prices and limits may be unknown
        assert row.usd_per_million is not None
        assert row.limits.tokens is not None


def test_every_model_of_an_api_has_limits_and_a_price():
    check_rows(APIS, check_limits_and_price)


def test_no_model_is_listed_twice():
    names = [(row.provider, row.name) for row in ROWS]
    assert len(set(names)) == len(names)


def test_facts_that_other_catalogues_have_wrong_are_right_here():
    """Sources: the pages of the providers that the rows link."""
    found = {row.name: row for row in ROWS}
    assert found["voyage-3-lite"].dimensions == 512
    assert found["voyage-3"].allowed_dimensions == (1024,)
    assert 256 in found["embed-v4.0"].allowed_dimensions
    assert found["embed-english-v3.0"].limits.text_tokens == 512
    assert found["BAAI/bge-small-en-v1.5"].dimensions == 384
    assert found["embed-multilingual-light-v3.0"].usd_per_million == Decimal("0.10")


def check_lookup_by_name(row):
    assert catalogue.find(row.name, row.provider) is row
    assert catalogue.find(row.name).provider == catalogue.providers_of(row.name)[0]
    assert catalogue.find(row.name, "fake") is None


def test_every_name_finds_its_row_with_and_without_its_provider():
    check_rows(ROWS, check_lookup_by_name)


@pytest.fixture(autouse=True)
def _an_account(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "my-account")


def check_facts_at_any_address(row):
    model = f"{row.provider}:{row.name}"
    for address in (None, "http://localhost:1/v1") if row.status != "retired" else ("http://localhost:1/v1",):
        here = made(model, base_url=address)
        assert here.dimensions == row.dimensions
        assert here.provider.limits == row.limits
        assert here.provider.usd_per_million == row.usd_per_million


def test_the_facts_of_a_model_do_not_depend_on_the_address():
    check_rows(APIS, check_facts_at_any_address)


def test_a_retired_model_is_refused_with_its_successor():
    said = r"retired 'embed-english-v2.0' on 2026-04-04; the successor 'cohere:embed-v4.0' has other vectors"
    with pytest.raises(ConfigurationError, match=said):
        made("cohere:embed-english-v2.0")
    assert made("cohere:embed-english-v2.0", model_info={"status": "legacy"}).dimensions == 4096
    assert made("cohere:embed-english-v2.0", base_url="http://localhost:1").dimensions == 4096
    assert made("openai:text-embedding-ada-002").dimensions == 1536  # legacy models are served


def test_models_filters_by_provider_status_and_name():
    assert {row.provider for row in models("voyage")} == {"voyage"}
    assert [row.name for row in models("openai", status="legacy")] == ["text-embedding-ada-002"]
    assert [row.provider for row in models(name="embed-v4.0")] == ["cohere"]
    with pytest.raises(ConfigurationError, match=r"provider 'voyge'; did you mean 'voyage'\?"):
        models("voyge")
    with pytest.raises(ConfigurationError, match=r"provider 'gemini'; did you mean 'google'\?"):
        models("gemini")
    with pytest.raises(ConfigurationError, match=r"status 'curent'; did you mean 'current'\?"):
        models(status="curent")


# Misspelled and new models


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("text-embeding-3-small", "openai:text-embedding-3-small"),
        ("text_embedding_3_large", "openai:text-embedding-3-large"),
        ("Text-Embedding-3-Small", "openai:text-embedding-3-small"),
        ("text-embedding-3-smal", "openai:text-embedding-3-small"),
        ("voyage-4-larg", "voyage:voyage-4-large"),
        ("voyage 4 lite", "voyage:voyage-4-lite"),
        ("voyge-3.5", "voyage:voyage-3.5"),
        ("embed-v4-0", "cohere:embed-v4.0"),
        ("embed-v4", "cohere:embed-v4.0"),
        ("embed-v5-pro", "cohere:embed-v5.0-pro"),
        ("embed-englsh-v3.0", "cohere:embed-english-v3.0"),
        ("embed-v5.0-por", "cohere:embed-v5.0-pro"),
    ],
)
def test_a_misspelled_model_is_refused_with_a_suggestion(slip, meant):
    assert catalogue.suggest_model(slip) == f"did you mean {meant!r}?"
    provider = meant.partition(":")[0]
    with pytest.raises(ConfigurationError, match=f"did you mean '{meant}'.*model_info"):
        made(f"{provider}:{slip}")
    assert made(f"{provider}:{slip}", model_info={}).model == f"{provider}:{slip}"


@pytest.mark.parametrize(
    "model",
    [
        *("openai:text-embedding-4-small", "openai:text-embedding-5", "voyage:voyage-5", "voyage:voyage-5-lite"),
        *("voyage:voyage-4-mini", "voyage:voyage-finance-4", "cohere:embed-v6.0-pro", "cohere:embed-english-v4.0"),
        *("cohere:embed-v5.0-nano", "openai:text-embedding-3-medium"),
    ],
)
def test_a_model_newer_than_the_catalogue_is_accepted(model):
    assert made(model).dimensions is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("voyage:text-embedding-3-small", "did you mean 'openai:text-embedding-3-small'"),
        ("openai:voyage-4", "did you mean 'voyage:voyage-4'"),
        ("cloudflare:bge-m3", "did you mean 'cloudflare:@cf/baai/bge-m3'"),
        ("bedrock:amazon.titan-embed-text-v2", "did you mean 'bedrock:amazon.titan-embed-text-v2:0'"),
        ("voyage:voyage-context-3", "endpoint, which is not supported"),
        ("voyage:voyage-multimodal-3.5", "endpoint, which is not supported"),
        ("pa-secret-key-of-mine", "looks like an API key"),
        ("al-secret-key-of-mine", "looks like an API key"),
    ],
)
def test_a_name_of_another_provider_or_api_is_refused_with_the_reason(model, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        made(model)
    assert "secret" not in str(caught.value)


def test_a_name_unlike_all_others_gets_no_suggestion():
    assert catalogue.suggest_model("nomic-embed-text:latest") == ""
    assert catalogue.suggest_model("") == ""
    assert catalogue.suggest_model("text-embedding-3-smal", "local") == ""


# model_info


def test_model_info_replaces_the_facts_of_a_known_model():
    changed = made(model_info={"usd_per_million": 0.5, "request_texts": 7, "text_tokens": 99})
    assert changed.provider.usd_per_million == Decimal("0.5")
    assert changed.provider.limits == Limits(texts=7, tokens=300_000, text_tokens=99)
    assert changed.explain("x").key == made().explain("x").key


def test_model_info_defines_an_unknown_model():
    info = {"dimensions": 768, "allowed_dimensions": [256, 768], "cut": "prefix", "usd_per_million": "0.01"}
    known = made("my-model", base_url="http://localhost:1/v1", model_info=info)
    assert (known.dimensions, known.provider.usd_per_million) == (768, Decimal("0.01"))
    assert made("my-model", base_url="http://localhost:1/v1", model_info=info, dimensions=256).dimensions == 256
    with pytest.raises(ConfigurationError, match="it offers 256, 768"):
        made("my-model", base_url="http://localhost:1/v1", model_info=info, dimensions=512)


def test_like_copies_the_facts_of_another_model():
    azure = made("openai:my-deployment", base_url="http://localhost:1/v1", model_info={"like": SMALL})
    assert (azure.model, azure.dimensions) == ("openai:my-deployment", 1536)
    assert azure.provider.limits == made().provider.limits
    assert azure.provider.usd_per_million == Decimal("0.02")
    dearer = made("openai:my-deployment", model_info={"like": SMALL, "usd_per_million": "0.022"})
    assert dearer.provider.usd_per_million == Decimal("0.022")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"dimension": 5}, "unknown field 'dimension'; did you mean 'dimensions'"),
        ({"dimensions": 512}, "Request other dimensions with dimensions="),
        ({"dimensions": "5"}, "dimensions must be a whole number of at least 1"),
        ({"dimensions": True}, "dimensions must be a whole number"),
        ({"allowed_dimensions": []}, "allowed_dimensions must be a list of whole numbers"),
        ({"allowed_dimensions": {"min": 9, "max": 3}}, "allowed_dimensions must be"),
        ({"allowed_dimensions": [3, 4], "dimensions": 5}, r"dimensions must be among allowed_dimensions .got 5."),
        ({"usd_per_million": -1}, "usd_per_million must be a price"),
        ({"usd_per_million": "free"}, "usd_per_million must be a price"),
        ({"usd_per_million": float("nan")}, "usd_per_million must be a price"),
        ({"cut": "middle"}, "cut must be one of 'prefix', 'centered'"),
        ({"dtypes": "int8"}, "dtypes must be a list of float32"),
        ({"prompts": {"passage": "x"}}, "prompts must be a mapping"),
        ({"unit_length": 1}, "unit_length must be one of"),
        ({"like": "text-embedding-3-smal"}, "did you mean 'openai:text-embedding-3-small'"),
        ({"like": 5}, "use provider:model"),
        ([1], "model_info: must be a mapping"),
    ],
    ids=str,
)
def test_invalid_model_info_is_refused_with_the_field(info, message):
    with pytest.raises(ConfigurationError, match=message):
        made(model_info=info)


def test_a_row_that_models_returns_is_valid_model_info():
    row = models(name="voyage-4")[0]
    assert made("voyage:voyage-4", model_info=as_json(row)).explain("x").key == made("voyage:voyage-4").explain("x").key


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "usd_per_million": st.decimals(0, 10, places=4),
            "text_tokens": st.integers(1, 10**6),
            "request_texts": st.integers(1, 4096),
            "request_tokens": st.integers(1, 10**6),
            "status": st.just("legacy"),
            "source": st.just("https://example.com"),
        },
    )
)
def test_limits_and_prices_do_not_change_keys(info):
    assert made(model_info=info).explain("x").key == made().explain("x").key
    assert info.keys() <= NON_VECTOR_FIELDS


@pytest.mark.parametrize("info", [{"prompts": {"document": "passage: "}}, {"unit_length": False}], ids=str)
def test_facts_that_change_vectors_change_keys(info):
    assert made(model_info=info).explain("x").key != made().explain("x").key


# The user's file


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "models.json"
    monkeypatch.setenv("RAG_EMBEDKIT_MODELS", str(path))
    return path


def test_rows_of_a_users_file_come_first(file):
    file.write_text(
        json.dumps(
            {
                "models": [
                    {"provider": "openai", "name": "text-embedding-3-small", "usd_per_million": "0.01"},
                    {
                        "provider": "openai",
                        "name": "text-embedding-9",
                        "like": "openai:text-embedding-3-large",
                        "dimensions": 512,
                    },
                    {"provider": "voyage", "name": "voyage-9", "dimensions": 64},
                    {
                        "provider": "deepinfra",
                        "name": "m",
                        "like": "local:BAAI/bge-base-en-v1.5",
                        "usd_per_million": "0.02",
                    },
                ]
            }
        )
    )
    assert [row.name for row in models()[:4]] == ["text-embedding-3-small", "text-embedding-9", "voyage-9", "m"]
    assert len(models()) == len(ROWS) + 3
    hosted = Embedder("deepinfra:m", api_key="k", cache=False)
    assert (hosted.price.usd_per_million, hosted.dimensions, hosted.is_normalized) == (Decimal("0.02"), 768, True)
    assert (models()[3].provider, hosted.provider.limits.texts) == ("deepinfra", 1024)
    assert made("voyage-9").provider.limits.texts == made("voyage-4").provider.limits.texts
    assert made().provider.usd_per_million == Decimal("0.01")
    assert made().dimensions == 1536
    assert made("text-embedding-9").dimensions == 512
    assert made("voyage-9").dimensions == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        ("{", "it is not valid JSON"),
        ("[]", "not an object such as"),
        ('{"models": [5]}', "model 1: provider and name are required"),
        ('{"models": [{"provider": "openai", "name": "a", "dims": 5}]}', "model openai:a: unknown field 'dims'"),
        (
            '{"models": [{"provider": "openai", "name": "a", "like": "b"}]}',
            "like must name a model in the catalogue .got 'b'.",
        ),
    ],
    ids=str,
)
def test_an_unusable_users_file_is_one_clear_error(file, content, message):
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        made()
    assert "RAG_EMBEDKIT_MODELS" in str(caught.value)


def test_a_row_is_frozen_and_hashable():
    row = ROWS[0]
    assert isinstance(row, ModelInfo)
    with pytest.raises(AttributeError):
        row.dimensions = 5
    assert {row: 1}[row] == 1
