"""Settings: an invalid one is refused before any request, with the fix; a valid one has its documented effect."""

from pathlib import Path

import pytest
from support.embedders import MINILM, core_embedder, needs_local_model, openai_embedder
from support.openai_server import OpenAIServer
from support.rows import check_rows

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.testing import FakeServer

OPENAI = "openai:text-embedding-3-small"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _no_environment_settings(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def at(server, **options):
    return {"model": OPENAI, "base_url": server.base_url, "api_key": "test-key", "cache": False, **options}


# Invalid settings


INVALID_MODELS = [
    ({"model": "opnai:text-embedding-3-small"}, "'openai:text-embedding-3-small'"),
    ({"model": "openai:text-embeding-3-small"}, "'openai:text-embedding-3-small'"),
    ({"model": "text-embeding-3-small"}, "'openai:text-embedding-3-small'"),
    ({"model": "some-model"}, "lmstudio, local, .*ollama, .*openai"),
    ({"model": "voyge:voyage-4"}, "'voyage:voyage-4'"),
    ({"model": "embed-v4-0"}, "'cohere:embed-v4.0'"),
    ({"model": "voyage-3", "dimensions": 512}, "offers 1024"),
    ({"model": "openai:"}, "names a provider and no model"),
    ({"model": " "}, "openai:text-embedding-3-small"),
    ({"model": str(ROOT / "tests")}, "Use 'local:"),
    ({"model": OPENAI, "dimensions": 4000}, "offers 1 to 1536"),
    ({"model": "openai:text-embedding-ada-002", "dimensions": 512}, "offers 1536"),
]
INVALID_LOCAL_MODELS = [
    ({"model": "local:/no/such/folder"}, "existing folder"),
    ({"model": f"local:{ROOT / 'tests'}"}, "not a sentence-transformers model"),
    ({"model": MINILM, "dimensions": 512}, "offers 384"),
]


def test_an_invalid_model_is_refused_with_a_suggestion(embedder_class):
    def check(row):
        settings, suggestion = row
        with pytest.raises(ConfigurationError, match=suggestion):
            embedder_class(api_key="x", cache=False, **settings)

    check_rows(INVALID_MODELS, check)


@needs_local_model
def test_an_invalid_local_model_is_refused_with_a_suggestion(embedder_class):
    def check(row):
        settings, suggestion = row
        with pytest.raises(ConfigurationError, match=suggestion):
            embedder_class(api_key="x", cache=False, **settings)

    check_rows(INVALID_LOCAL_MODELS, check)


def test_a_mistyped_argument_is_refused_with_the_nearest_name(embedder_class, server):
    def check(row):
        mistyped, nearest = row
        with pytest.raises(ConfigurationError, match=f"no argument '{mistyped}'; did you mean '{nearest}'") as refused:
            embedder_class(**at(server), **{mistyped: "sk-secret"})
        assert type(refused.value) is ConfigurationError
        assert "sk-secret" not in str(refused.value)

    rows = [
        ("max_concurency", "max_concurrency"),
        ("dimension", "dimensions"),
        ("apikey", "api_key"),
        ("cahce", "cache"),
    ]
    check_rows(rows, check)
    assert server.requests == []


INVALID_VALUES = [
    {"max_concurrency": 0},
    {"max_concurrency": "5"},
    {"max_concurrency": True},
    {"max_concurrency": 2.5},
    {"max_batch_texts": 0},
    {"max_retries": -1},
    {"timeout": 0},
    {"timeout": "60"},
    {"timeout": float("nan")},
    {"cache": ""},
    {"cache": True},
    {"cache": 5},
    {"cache": "a\0b"},
    {"on_long_text": "cut"},
    {"dimensions": "512"},
    {"dimensions": 0},
    {"dimensions": True},
    {"api_key": " "},
    {"api_key": ""},
    {"api_key": 5},
    {"model": None},
    {"base_url": 5},
    {"base_url": "localhost:8000/v1"},
    {"base_url": "http://[half/v1"},
    {"base_url": "http://host:port/v1"},
    {"query_prompt": 5},
    {"document_prompt": ["p"]},
    {"provider_options": "user"},
    {"provider_options": ["user"]},
    {"provider_options": {1: "user"}},
    {"provider_options": {"user": {1, 2}}},
    {"provider_options": {"weight": float("nan")}},
]


def test_an_invalid_value_is_a_configuration_error_that_names_the_argument(embedder_class, server):
    def check(wrong):
        [name] = wrong
        with pytest.raises(ConfigurationError, match=name) as refused:
            embedder_class(**at(server, **wrong))
        assert type(refused.value) is ConfigurationError
        assert "test-key" not in str(refused.value)

    check_rows(INVALID_VALUES, check)
    assert server.requests == []


def test_provider_options_cannot_replace_an_argument(embedder_class, server):
    for field in ("input", "model", "encoding_format", "dimensions", "prompt"):
        with pytest.raises(ConfigurationError, match=field):
            embedder_class(**at(server, provider_options={field: "x"}))


def test_an_unknown_input_type_is_refused_with_the_nearest_name(server):
    for wrong in ("querry", None, ["query"]):
        with pytest.raises(ConfigurationError, match=r"input_type: .*'document', 'query'"):
            openai_embedder(server).embed(["x"], input_type=wrong)
    with pytest.raises(ConfigurationError, match="did you mean 'query'"):
        openai_embedder(server).explain("x", input_type="querry")
    with pytest.raises(ConfigurationError, match=r"did you mean 'document'\?"):
        openai_embedder(server).embed(["x"], input_type="documents")
    assert server.requests == []


def test_a_missing_key_names_the_environment_variable(embedder_class):
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        embedder_class(model=OPENAI, cache=False)


@pytest.mark.parametrize("key", ["sk-\u2026abc", "two words", "a\nb"])
def test_a_key_that_fits_in_no_header_is_refused_before_any_request(key):
    with pytest.raises(ConfigurationError, match="api_key: the key has white space or") as caught:
        Embedder(OPENAI, api_key=key)
    assert key not in str(caught.value)


def test_credentials_in_the_address_are_refused_and_not_shown(embedder_class):
    for address in ("http://me:hunter2@localhost/v1", "ftp://me:hunter2@localhost/v1"):
        with pytest.raises(ConfigurationError, match="base_url") as refused:
            embedder_class(model="any", base_url=address, cache=False)
        assert "hunter2" not in str(refused.value)


def test_a_mistyped_model_argument_is_named_before_the_missing_model(framework_class):
    with pytest.raises(ConfigurationError, match="no argument 'modle'; did you mean 'model'"):
        framework_class(modle=OPENAI)


# Valid settings


def test_key_and_address_come_from_the_environment(embedder_class, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    made = embedder_class(model=OPENAI, cache=False)
    core_embedder(made).embed(["x"])
    assert [(r.headers["authorization"], r.status) for r in server.requests] == [("Bearer test-key", 200)]


def test_an_argument_takes_precedence_over_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    openai_embedder(server).embed(["x"])
    assert [request.status for request in server.requests] == [200]


@pytest.mark.parametrize("key", ["test-key\n", "  test-key ", "test-key\r\n"])
def test_white_space_around_a_key_is_removed(server, key, monkeypatch):
    openai_embedder(server, api_key=key).embed(["one"])
    monkeypatch.setenv("OPENAI_API_KEY", key)
    openai_embedder(server, api_key=None).embed(["two"])


def test_only_a_registered_provider_is_split_from_the_model_name():
    local = {"base_url": "http://localhost:1/v1", "cache": False}
    assert Embedder("nomic-embed-text:latest", **local).model == "openai:nomic-embed-text:latest"
    assert Embedder("openai:nomic-embed-text:latest", **local).model == "openai:nomic-embed-text:latest"
    assert Embedder("text-embedding-3-small", api_key="x", cache=False).model == OPENAI
    assert Embedder("text-embedding-3-small", **local).model == OPENAI
    assert Embedder("fake:a:b", base_url=(fake := FakeServer()).url, cache=False).model == "fake:a:b"
    assert fake.received == []


@needs_local_model
def test_the_name_of_a_local_model_is_its_folder():
    assert Embedder(MINILM, cache=False).model == MINILM


def test_a_tag_in_a_model_name_is_sent_unchanged():
    with OpenAIServer(api_key=None, models={"nomic-embed-text:latest"}, dimensions=8) as server:
        assert openai_embedder(server, "nomic-embed-text:latest", api_key=None).embed_query("x").shape == (8,)


def test_an_unknown_model_works_at_the_provider_host_and_at_other_hosts():
    unknown = Embedder("openai:text-embedding-9-immense", api_key="x", cache=False)
    assert (unknown.dimensions, unknown.explain("x").usd_per_million) == (None, None)
    assert unknown.explain("x").endpoint == "the provider's own"
    Embedder("openai:text-embeding-3-small", base_url="http://localhost:1/v1", cache=False)


def test_spellings_of_one_address_share_a_key_and_an_account():
    def check(row):
        one, same = row
        made = [Embedder(OPENAI, api_key="x", base_url=url, cache=False) for url in (one, same)]
        assert made[0].explain("x").key == made[1].explain("x").key
        assert made[0].provider.account == made[1].provider.account
        assert made[0].space == made[1].space

    check_rows(
        [
            ("http://localhost:8000/v1", "HTTP://LocalHost:8000/v1/"),
            ("http://localhost/v1", "http://localhost:80/v1"),
            ("https://host/v1", " https://HOST:443/v1// "),
            ("https://api.openai.com/v1", "https://API.openai.com:443/v1/"),
            (None, "https://api.openai.com/v1"),
        ],
        check,
    )


def test_another_address_has_another_cache_key():
    def check(other):
        one = Embedder(OPENAI, api_key="x", base_url="http://localhost:8000/v1", cache=False)
        assert one.explain("x").key != Embedder(OPENAI, api_key="x", base_url=other, cache=False).explain("x").key

    check_rows(["http://localhost:8001/v1", "https://localhost:8000/v1", "http://localhost:8000/V1"], check)


def test_a_prompt_changes_the_keys_of_its_input_type_only(server):
    plain, prompted = openai_embedder(server), openai_embedder(server, query_prompt="query: ")
    assert prompted.explain("x").key == plain.explain("x").key
    assert prompted.explain("x", input_type="query").key != plain.explain("x", input_type="query").key
    prompted.embed(["x"])
    prompted.embed_query("x")
    assert [request.texts for request in server.requests] == [("x",), ("query: x",)]
    assert "prompt" not in server.requests[1].body


def test_an_empty_prompt_is_no_prompt(server):
    assert (
        openai_embedder(server, query_prompt="").explain("x", input_type="query").key
        == openai_embedder(server).explain("x").key
    )


def test_provider_options_are_in_the_request_and_in_the_key(embedder_class, server):
    made = embedder_class(**at(server, provider_options={"user": "me", "extra": {"deep": [1, None, True]}}))
    core = core_embedder(made)
    assert core.explain("x").key != openai_embedder(server).explain("x").key
    assert core.explain("x").request_body["user"] == "me"
    core.embed(["x"])
    assert (server.requests[0].body["user"], server.requests[0].body["extra"]) == ("me", {"deep": [1, None, True]})


def test_options_changed_after_construction_have_no_effect(server):
    options = {"user": "me", "extra": {"deep": 1}}
    made = openai_embedder(server, provider_options=options)
    before = repr(made.explain("x"))
    options["user"] = options["extra"]["deep"] = "another"
    assert repr(made.explain("x")) == before


def test_dimensions_are_sent_unless_they_are_the_default(server):
    assert openai_embedder(server, dimensions=64).embed_query("x").shape == (64,)
    assert openai_embedder(server, dimensions=1536).embed_query("x").shape == (1536,)
    assert [request.body.get("dimensions") for request in server.requests] == [64, None]


def test_explain_shows_the_source_of_a_vector_and_sends_nothing(server, tmp_path):
    def served_from(made):
        return made.explain("x", input_type="query").served_from

    made = openai_embedder(server, cache=tmp_path)
    assert served_from(made) == "provider"
    assert server.requests == []
    made.embed(["x"])
    assert served_from(made) == "cache"
    made.embed_query("x")
    assert served_from(made) == "memory"
    assert (served_from(openai_embedder(server, cache=tmp_path)), served_from(openai_embedder(server))) == (
        "cache",
        "provider",
    )
    assert len(server.requests) == 1


def test_explain_shows_the_request_without_text_and_key(server):
    explanation = openai_embedder(server, dimensions=64, document_prompt="d: ").explain("some text")
    assert explanation.request_body == {"model": "text-embedding-3-small", "dimensions": 64, "prompt": "d: "}
    assert (explanation.endpoint, str(explanation.usd_per_million)) == (server.base_url, "0.02")
    assert explanation.estimated_tokens >= 1
    assert "some text" not in repr(explanation)
    assert "test-key" not in repr(explanation)


def test_the_arguments_of_an_embedder_cannot_be_changed():
    def check(name):
        server = FakeServer()
        embedder = Embedder("fake:model", base_url=server.url, cache=False)
        with pytest.raises(AttributeError, match=f"Create a new Embedder with {name}="):
            setattr(embedder, name, 3)
        assert embedder.model == "fake:model"

    check_rows(["deadline", "max_concurrency", "model", "rate_limiter", "budget_usd", "cache"], check)


def test_pickle_api_key_must_be_a_bool():
    def check(value):
        with pytest.raises(ConfigurationError, match=r"pickle_api_key: must be True or False \(got "):
            Embedder("fake:model", cache=False, pickle_api_key=value)

    check_rows(["no", 1, None], check)


def test_a_framework_class_is_frozen_and_a_changed_copy_has_a_changed_embedder(framework_class):
    server = FakeServer()
    made = framework_class(model="fake:model", base_url=server.url, cache=False)
    with pytest.raises(AttributeError, match="read-only"):
        made.dimensions = 4
    other = made.model_copy(update={"dimensions": 4})
    assert other.dimensions == other.embedder.dimensions == 4
    assert made.model_copy().embedder.dimensions == made.embedder.dimensions == 8
