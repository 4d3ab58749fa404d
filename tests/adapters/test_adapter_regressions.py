"""What a hostile review of the adapters found, so that it does not come back."""

import asyncio
import json
import logging
import pickle
import threading
import time
from enum import StrEnum

import pytest
from support.embedders import MINILM, needs_local_model
from support.openai_server import Fault, vector_of

from embedkit_core import BadRequestError, ConfigurationError, Embedder, EmbedKitError, ProviderError
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MODEL = "text-embedding-3-small"
DOORS = [Embedder, EmbedKitEmbeddings, EmbedKitEmbedding]
doors = pytest.mark.parametrize("door", DOORS, ids=["core", "langchain", "llamaindex"])
hosts = pytest.mark.parametrize("door", DOORS[1:], ids=["langchain", "llamaindex"])


def at(server, **options):
    return {"model": MODEL, "base_url": server.base_url, "api_key": "test-key", "cache": False, **options}


def core(thing):
    return thing if isinstance(thing, Embedder) else thing.embedder


@hosts
def test_a_subclass_may_have_a_model_of_its_own(door):
    field = "model" if door is EmbedKitEmbeddings else "model_name"
    own = type("Own", (door,), {"__annotations__": {field: str}, field: MODEL, "__module__": __name__})
    assert own(api_key="k", cache=False).embedder.model == f"openai:{MODEL}"


@pytest.mark.parametrize("name", ["model_kwargs", "additional_kwargs"])
def test_the_sdks_extra_body_is_fields_of_the_request_and_its_other_options_are_refused(server, name):
    door = EmbedKitEmbeddings if name == "model_kwargs" else EmbedKitEmbedding
    model = door(**at(server, **{name: {"user": "u", "extra_body": {"input_type": "query"}}}))
    model.embedder.embed_query("a")
    sent = server.requests[0].body
    assert (sent["user"], sent["input_type"], "extra_body" in sent) == ("u", "query", False)
    for option in ("extra_headers", "extra_query", "timeout", "api_key"):
        with pytest.raises(ConfigurationError, match=option):
            door(**at(server, **{name: {option: {"Authorization": "Bearer sk-SECRET"}}}))


def test_a_dump_holds_no_key_and_a_masked_one_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    model = EmbedKitEmbeddings(model=MODEL, cache=False, pickle_api_key=True)
    again = EmbedKitEmbeddings(**model.model_dump())
    assert b"sk-of-the-environment" not in pickle.dumps(again)
    assert EmbedKitEmbeddings(**json.loads(model.model_dump_json())).api_key == model.api_key
    for door in DOORS:
        with pytest.raises(ConfigurationError, match="masked key"):
            door(model=MODEL, api_key="**********", cache=False)


@hosts
def test_a_refused_field_leaves_no_error_behind_that_holds_what_was_given(door):
    with pytest.raises(ConfigurationError, match="api_key") as refused:
        door(model=MODEL, api_key=["sk-in-a-list"], cache=False)
    assert refused.value.__context__ is None
    assert "sk-in-a-list" not in str(refused.value)


@doors
def test_a_key_in_the_place_of_the_model_is_not_shown(door):
    with pytest.raises(ConfigurationError, match="looks like an API key") as refused:
        door("sk-proj-123456", cache=False)
    assert "123456" not in str(refused.value)


@doors
def test_white_space_around_an_address_is_no_part_of_it(door, server, monkeypatch):
    core(door(**at(server, base_url=f" {server.base_url}\n"))).embed_query("a")
    monkeypatch.setenv("OPENAI_API_BASE", f"{server.base_url}\n")
    core(door(**at(server, base_url=None))).embed_query("b")
    assert len(server.requests) == 2


@doors
def test_options_that_somebody_changes_afterwards_change_nothing(door, server):
    options = {"user": "a"}
    model = door(**at(server, provider_options=options))
    key = core(model).explain("x").key
    options["user"] = "b"
    assert core(model).explain("x").key == core(pickle.loads(pickle.dumps(model))).explain("x").key == key


@doors
def test_a_pickle_keeps_address_and_folder_when_the_environment_is_another(door, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_BASE", server.base_url)
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(door(**at(server, base_url=None, cache="here")))
    monkeypatch.setenv("OPENAI_API_BASE", "http://localhost:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.chdir("/")
    core(pickle.loads(pickled)).embed_query("a")
    assert len(server.requests) == 1
    assert (tmp_path / "here").is_dir()


def test_a_subclass_of_the_embedder_is_one_after_a_pickle(server):
    assert type(pickle.loads(pickle.dumps(Own(**at(server))))) is Own


class Own(Embedder):
    """Somebody's."""


@hosts
def test_pydantics_former_copy_is_checked_too(door, server):
    model = door(**at(server))
    assert model.copy(update={"dimensions": 64}).embedder.dimensions == 64
    assert door.model_json_schema()["properties"]["dimensions"]


def test_one_meaning_has_one_dictionary(server):
    one = EmbedKitEmbedding(**at(server, provider_options={"a": {"x": 1, "y": 2}}))
    other = EmbedKitEmbedding(**at(server, base_url=f"{server.base_url}/", provider_options={"a": {"y": 2, "x": 1}}))
    assert str(one.to_dict()) == str(other.to_dict())


@hosts
def test_two_spellings_with_one_value_are_no_conflict(door, server):
    for given in ({"api_key": None, "openai_api_key": "k"}, {"openai_api_key": "k", "voyage_api_key": "k"}):
        assert door(model=MODEL, cache=False, **given).api_key.get_secret_value() == "k"
    assert door(model=MODEL, api_key="k", cache=False, dimensions=None, output_dimension=64).dimensions == 64


def test_a_chunk_size_of_none_or_nothing_is_the_default(server):
    model = EmbedKitEmbeddings(**at(server))
    assert model.embed_documents(["a"], chunk_size=0) == [vector_of("a").tolist()]


class Models(StrEnum):
    SMALL = MODEL


@doors
def test_a_model_may_be_named_by_an_enumeration(door, server):
    assert core(door(**at(server, model=Models.SMALL))).model == f"openai:{MODEL}"


@doors
def test_a_refused_field_of_the_request_is_not_blamed_on_the_texts(door, server):
    body = {"error": {"message": "Unrecognized request argument supplied: foo", "param": None}}
    server.fault_for(lambda texts, number: Fault(status=400, body=body))
    with pytest.raises(BadRequestError, match=r"refuses the request .*Unrecognized request argument") as refused:
        core(door(**at(server, provider_options={"foo": 1}))).embed(["a", "b"])
    assert type(refused.value) is BadRequestError
    assert len(server.requests) == 1


# Limiters


class Promises:
    """Looks as if it blocked, and gives a coroutine."""

    def acquire(self):
        return self._later()

    async def _later(self): ...


def test_a_limiter_that_gives_a_coroutine_is_refused_when_it_is_asked(server):
    with pytest.raises(ProviderError, match="is async"):
        Embedder(**at(server, rate_limiter=Promises())).embed_query("a")
    assert server.requests == []


class Recursive:
    """Embeds a text to find out whether a text may be embedded."""

    def acquire(self):
        self.embedder.embed_query("may I?")


def test_a_limiter_that_embeds_is_told_and_does_not_hang(server):
    limiter = Recursive()
    limiter.embedder = Embedder(**at(server, rate_limiter=limiter))
    with pytest.raises(ProviderError, match=r"acquire\(\) failed with EmbedKitError"):
        limiter.embedder.embed_query("a")


class Broken:
    @property
    def tokens_per_minute(self):
        raise RuntimeError("not now")

    def acquire(self): ...


def test_a_limiter_whose_attribute_fails_is_asked_all_the_same(server):
    assert Embedder(**at(server, rate_limiter=Broken())).embed_query("a").tolist() == vector_of("a").tolist()


# Imports


class OneAtATime(dict):
    """A cache that notices when two write to it."""

    def __init__(self):
        self.writers, self.most = 0, 0

    def get_many(self, keys):
        return {key: self[key] for key in keys if key in self}

    def set_many(self, items):
        self.writers += 1
        self.most = max(self.most, self.writers)
        time.sleep(0.002)
        self.update(items)
        self.writers -= 1

    def close(self): ...


def test_an_import_and_the_engine_write_one_at_a_time():
    server = FakeServer(dimensions=4)
    cache = OneAtATime()
    embedder = Embedder("fake:m", base_url=server.url, cache=cache)
    texts = [f"t{i}" for i in range(40)]
    vectors = Embedder("fake:m", base_url=server.url, cache=False).embed(texts).vectors
    importing = threading.Thread(
        target=lambda: [embedder.import_vectors([t], [v], verify=0) for t, v in zip(texts, vectors, strict=True)]
    )
    importing.start()
    for i in range(20):
        embedder.embed([f"other {i}"])
    importing.join()
    assert cache.most == 1
    assert len(cache) == 60


def test_an_import_replaces_no_vector_of_the_models_own():
    server = FakeServer(dimensions=4)
    embedder = Embedder("fake:m", base_url=server.url, cache=OneAtATime())
    texts = [f"t{i}" for i in range(10)]
    right = embedder.embed(texts).vectors
    embedder.import_vectors(texts, right[::-1], verify=0)
    assert (embedder.embed(texts).vectors == right).all()


@pytest.mark.parametrize(
    "model", ["any-model", pytest.param(MINILM, marks=needs_local_model)], ids=["compatible server", "local"]
)
def test_a_text_that_may_be_too_long_for_an_unknown_limit_is_doubtful(server, tmp_path, model):
    options = {} if model == MINILM else {"base_url": server.base_url, "api_key": "test-key"}
    embedder = Embedder(model, cache=tmp_path, **options)
    taken = embedder.import_vectors(["short", "long " * 100], [[1.0] * 384] * 2, verify=0)
    assert (taken.imported, taken.doubtful) == (1, (1,))


class Slow(OneAtATime):
    def get_many(self, keys):
        time.sleep(0.2)
        return super().get_many(keys)


async def test_a_slow_cache_of_somebody_elses_does_not_hold_the_loop():
    server = FakeServer()
    embedder = Embedder("fake:m", base_url=server.url, cache=Slow())
    work = asyncio.create_task(embedder.aembed_query("a"))
    ticks = 0
    while not work.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert ticks > 5


def test_an_error_of_ours_is_what_a_cache_that_fails_to_import_gives(caplog):
    class Failing(OneAtATime):
        def set_many(self, items):
            raise OSError("/secret/path")

    server = FakeServer()
    embedder = Embedder("fake:m", base_url=server.url, cache=Failing())
    with caplog.at_level(logging.ERROR), pytest.raises(EmbedKitError, match="could not be written") as failed:
        embedder.import_vectors(["a"], [[1.0] * 8], verify=0)
    assert "/secret" not in str(failed.value)
    assert failed.value.__context__ is None
