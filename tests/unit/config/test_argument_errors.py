"""Errors for arguments that users of other libraries write, and for values of the wrong kind."""

import re

import pytest
from support.rows import check_rows

from embedkit_core import ConfigurationError, Embedder
from embedkit_core.adapters.arguments import COMMON_RULES, Alias
from embedkit_core.common.foreign_names import MEANT
from embedkit_core.config.base import parameter_names
from embedkit_core.observability.otel import instrument

MODEL = "openai:text-embedding-3-small"


def error(**arguments):
    with pytest.raises(ConfigurationError) as caught:
        Embedder(**{"model": MODEL, "api_key": "unused", "cache": False, **arguments})
    return str(caught.value)


def test_the_name_of_an_argument_in_another_library_gets_the_name_here():
    def check(row):
        name, advice = row
        assert error(**{name: "x"}) == f"Embedder takes no argument {name!r}; {advice}"

    rows = [
        ("openai_api_key", "use api_key="),
        ("model_name", "use model="),
        ("chunk_size", "use max_batch_texts="),
        ("api_base", "use base_url="),
        ("device", "for a local model, pass provider_options={'device': ...}"),
        ("normalize_embeddings", "vectors have length 1 if the model documents it"),
        ("input_type", "pass it to embed(), or use embed_query() and embed_documents()"),
        ("cache_folder", "models are in HF_HUB_CACHE; for the cache of vectors, use cache="),
        ("google_api_key", "use api_key="),
        ("httpx_client", "use headers=, proxy=, ca_bundle= and client_cert="),
        ("threads", "for a local model, pass provider_options={'threads': ...}"),
        ("account_id", "set the environment variable CLOUDFLARE_ACCOUNT_ID"),
        ("location", "set the environment variable GOOGLE_CLOUD_LOCATION, and use model='vertex:...'"),
        ("timout", "did you mean 'timeout'?"),
    ]
    check_rows(rows, check)


def test_a_name_that_is_like_no_other_gets_the_list_of_arguments():
    for name in ("quux", "vocab"):
        assert "; it takes model, api_key, base_url," in error(**{name: 1})


def test_the_names_of_other_libraries_lead_to_arguments_as_in_the_adapters():
    meant = {name: argument for argument, names in MEANT.items() for name in names}
    assert set(MEANT) <= set(parameter_names())
    assert meant.keys().isdisjoint(parameter_names())
    for name, rule in COMMON_RULES.items():
        if isinstance(rule, Alias):
            assert meant[name] == rule.to


def test_a_value_that_is_no_string_gets_no_similar_string():
    assert error(on_long_text=True) == "on_long_text: must be one of 'truncate', 'error', 'mean' (got True)"


def test_a_model_string_in_another_spelling_gets_the_one_here():
    def check(row):
        given, meant = row
        assert error(model=given).endswith(f"unknown model {given!r}; did you mean {meant!r}?")

    rows = [
        ("openai/text-embedding-3-small", MODEL),
        ("OpenAI:text-embedding-3-small", MODEL),
        ("OpenAI/anything", "openai:anything"),
        ("cohere/embed-v4.0", "cohere:embed-v4.0"),
        ("voyageai:voyage-4", "voyage:voyage-4"),
        ("azure_openai:deployment", "azure:deployment"),
        ("azure-openai:deployment", "azure:deployment"),
        ("huggingface:owner/name", "local:owner/name"),
        ("hugging_face:owner/name", "local:owner/name"),
        ("llama.cpp:m", "llamacpp:m"),
        ("models/gemini-embedding-001", "google:gemini-embedding-001"),
        ("google/gemini-embedding-2", "google:gemini-embedding-2"),
        ("nvidia/llama-3.2-nv-embedqa-1b-v2", "nvidia:nvidia/llama-3.2-nv-embedqa-1b-v2"),
        ("sentence-transformers/some-model", "local:sentence-transformers/some-model"),
    ]
    check_rows(rows, check)


def test_the_name_of_a_provider_alone_is_refused_with_the_form_of_a_model_string():
    assert error(model="ollama").endswith("names a provider and no model (got 'ollama'). Use 'ollama:MODEL'.")


def test_a_model_string_with_a_slash_is_a_name_at_a_given_address():
    for name in ("openai/text-embedding-3-small", "owner/name"):
        embedder = Embedder(name, base_url="http://localhost:4000/v1", cache=False)
        assert embedder.model == f"openai:{name}"


def test_cache_true_is_refused_with_what_to_pass():
    assert error(cache=True) == "cache: must not be True. Omit it for the default folder, or pass a folder."


def test_an_address_with_white_space_inside_is_refused(embedder_class):
    for address in ("http://local host:8000/v1", "http://localhost:8000/v1 x", "localhost:8000/v1"):
        with pytest.raises(ConfigurationError, match=f"base_url: not a valid address .got {re.escape(repr(address))}"):
            embedder_class(model="some-model", base_url=address, cache=False)


def test_invalid_values_are_named_before_a_missing_key(embedder_class, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def check(row):
        name, value = row
        with pytest.raises(ConfigurationError, match=name):
            embedder_class(model=MODEL, **{name: value})

    rows = [
        ("budget_usd", -1),
        ("budget_tokens", -1),
        ("cache", 3),
        ("cache", ""),
        ("prices", {"m": "x"}),
        ("progress", 3),
        ("rate_limiter", 3),
        ("on_empty_text", "x"),
        ("max_retries", -1),
        ("provider_options", 3),
    ]
    check_rows(rows, check)


class OwnEmbedder(Embedder):
    """A subclass of a user."""


def test_a_second_positional_argument_is_refused_in_the_name_of_the_class_that_was_called():
    for cls in (Embedder, OwnEmbedder):
        with pytest.raises(ConfigurationError, match=f"^{cls.__name__} takes one positional argument, the model"):
            cls(MODEL, "sk-secret")
        with pytest.raises(ConfigurationError, match=f"^{cls.__name__} takes no argument 'key'; use api_key="):
            cls(MODEL, key="sk-secret")


def test_a_reserved_field_in_the_options_gets_the_argument_for_it():
    assert error(provider_options={"dimensions": 3}).endswith(
        "must not contain dimensions; the library sets these fields. Use dimensions=."
    )


def test_instrument_names_a_provider_that_is_none_of_opentelemetry():
    with pytest.raises(ConfigurationError, match=r"tracer_provider: must have a method get_tracer\(\) \(got int\)"):
        instrument(5)
    with pytest.raises(ConfigurationError, match=r"meter_provider: must have a method get_meter\(\) \(got str\)"):
        instrument(None, "x")
