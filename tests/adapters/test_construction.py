"""Arguments of the three classes: what is accepted, what is refused, and that secrets are not shown."""

import pickle
from enum import StrEnum

import pytest
from support.openai_server import vector_of

from embedkit_core import ConfigurationError, Embedder
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MODEL = "text-embedding-3-small"


def at(server, **options):
    return {"model": MODEL, "base_url": server.base_url, "api_key": "test-key", "cache": False, **options}


def core(thing):
    return thing if isinstance(thing, Embedder) else thing.embedder


def test_a_subclass_may_set_the_default_model(framework_class):
    field = "model" if framework_class is EmbedKitEmbeddings else "model_name"
    own = type("Own", (framework_class,), {"__annotations__": {field: str}, field: MODEL, "__module__": __name__})
    assert own(api_key="k", cache=False).embedder.model == f"openai:{MODEL}"


@pytest.mark.parametrize("name", ["model_kwargs", "additional_kwargs"])
def test_the_sdks_extra_body_becomes_request_fields_and_its_other_options_are_refused(server, name):
    kind = EmbedKitEmbeddings if name == "model_kwargs" else EmbedKitEmbedding
    model = kind(**at(server, **{name: {"user": "u", "extra_body": {"input_type": "query"}}}))
    model.embedder.embed_query("a")
    sent = server.requests[0].body
    assert (sent["user"], sent["input_type"], "extra_body" in sent) == ("u", "query", False)
    for option in ("extra_headers", "extra_query", "timeout", "api_key"):
        with pytest.raises(ConfigurationError, match=option):
            kind(**at(server, **{name: {option: {"Authorization": "Bearer sk-SECRET"}}}))


def test_the_error_of_a_refused_field_does_not_contain_its_value(framework_class):
    with pytest.raises(ConfigurationError, match="api_key") as refused:
        framework_class(model=MODEL, api_key=["sk-in-a-list"], cache=False)
    assert refused.value.__context__ is None
    assert "sk-in-a-list" not in str(refused.value)


def test_an_api_key_passed_as_the_model_is_refused_and_not_shown(embedder_class):
    with pytest.raises(ConfigurationError, match="looks like an API key") as refused:
        embedder_class("sk-proj-123456", cache=False)
    assert "123456" not in str(refused.value)


def test_white_space_around_an_address_is_ignored(embedder_class, server, monkeypatch):
    core(embedder_class(**at(server, base_url=f" {server.base_url}\n"))).embed_query("a")
    monkeypatch.setenv("OPENAI_API_BASE", f"{server.base_url}\n")
    core(embedder_class(**at(server, base_url=None))).embed_query("b")
    assert len(server.requests) == 2


def test_changing_an_options_dictionary_after_construction_has_no_effect(embedder_class, server):
    options = {"user": "a"}
    model = embedder_class(**at(server, provider_options=options))
    key = core(model).explain("x").key
    options["user"] = "b"
    assert core(model).explain("x").key == core(pickle.loads(pickle.dumps(model))).explain("x").key == key


def test_two_names_of_an_argument_may_have_the_same_value(framework_class, server):
    for given in ({"api_key": None, "openai_api_key": "k"}, {"openai_api_key": "k", "voyage_api_key": "k"}):
        assert framework_class(model=MODEL, cache=False, **given).api_key.get_secret_value() == "k"
    assert framework_class(model=MODEL, api_key="k", cache=False, dimensions=None, output_dimension=64).dimensions == 64


def test_a_chunk_size_of_zero_is_the_default(server):
    model = EmbedKitEmbeddings(**at(server))
    assert model.embed_documents(["a"], chunk_size=0) == [vector_of("a").tolist()]


class Models(StrEnum):
    SMALL = MODEL


def test_the_model_may_be_an_enumeration_member(embedder_class, server):
    assert core(embedder_class(**at(server, model=Models.SMALL))).model == f"openai:{MODEL}"


def test_a_subclass_is_initialized_once_and_its_missing_field_is_named(framework_class, server):
    calls = []

    def post_init(self, context):
        framework_class.model_post_init(self, context)
        calls.append(self.needed)

    fields = {"__annotations__": {"needed": int}, "model_post_init": post_init, "__module__": __name__}
    own = type("Own", (framework_class,), fields)
    own(**at(server), needed=1)
    assert calls == [1]
    with pytest.raises(ConfigurationError, match="Own: needed: Field required"):
        own(**at(server))
