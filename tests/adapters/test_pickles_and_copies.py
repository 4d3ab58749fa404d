"""Pickles, copies, dumps and dictionaries of the three classes."""

import json
import pickle

import pytest

from embedkit_core import ConfigurationError, Embedder
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MODEL = "text-embedding-3-small"


def at(server, **options):
    return {"model": MODEL, "base_url": server.base_url, "api_key": "test-key", "cache": False, **options}


def core(thing):
    return thing if isinstance(thing, Embedder) else thing.embedder


def test_a_dump_holds_no_key_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    model = EmbedKitEmbeddings(model=MODEL, cache=False, pickle_api_key=True)
    again = EmbedKitEmbeddings(**model.model_dump())
    assert b"sk-of-the-environment" not in pickle.dumps(again)
    assert EmbedKitEmbeddings(**json.loads(model.model_dump_json())).api_key == model.api_key


def test_a_masked_key_is_refused(embedder_class):
    with pytest.raises(ConfigurationError, match="the key is masked"):
        embedder_class(model=MODEL, api_key="**********", cache=False)


def test_a_pickle_keeps_address_and_cache_folder_in_another_environment(embedder_class, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_BASE", server.base_url)
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(embedder_class(**at(server, base_url=None, cache="here")))
    monkeypatch.setenv("OPENAI_API_BASE", "http://localhost:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.chdir("/")
    core(pickle.loads(pickled)).embed_query("a")
    assert len(server.requests) == 1
    assert (tmp_path / "here").is_dir()


class Subclass(Embedder):
    """A subclass."""


def test_a_pickled_subclass_keeps_its_class(server):
    assert type(pickle.loads(pickle.dumps(Subclass(**at(server))))) is Subclass


def test_pydantics_deprecated_copy_is_validated(framework_class, server):
    model = framework_class(**at(server))
    assert model.copy(update={"dimensions": 64}).embedder.dimensions == 64
    assert framework_class.model_json_schema()["properties"]["dimensions"]


def test_equal_settings_have_equal_dictionaries(server):
    one = EmbedKitEmbedding(**at(server, provider_options={"a": {"x": 1, "y": 2}}))
    other = EmbedKitEmbedding(**at(server, base_url=f"{server.base_url}/", provider_options={"a": {"y": 2, "x": 1}}))
    assert str(one.to_dict()) == str(other.to_dict())
