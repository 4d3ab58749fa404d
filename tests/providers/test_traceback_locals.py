"""Local variables of a traceback, which rich, Sentry and pytest show: none of ours holds a key, header or proxy."""

import asyncio
import json
import pickle
import sys
import traceback

import pytest
from rich.traceback import Traceback
from support.bedrock_server import BedrockServer
from support.cohere_server import CohereServer
from support.google_server import GoogleServer
from support.json_servers import NomicServer
from support.openai_server import Fault, OpenAIServer
from support.traceback_locals import OURS, SECRET, leaks
from support.voyage_server import VoyageServer

from embedkit_core import Embedder, EmbedKitError
from embedkit_core.providers.secrets import Hidden, hide, mask_login
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

KEY = f"sk-proj-{SECRET}"
OPENAI = "openai:text-embedding-3-small"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
PROXY = f"http://user:{SECRET}@localhost:1"


def assert_no_leak(error: BaseException) -> None:
    assert not leaks(error)
    extracted = Traceback.extract(type(error), error, error.__traceback__, show_locals=True, locals_max_string=None)
    for stack in extracted.stacks:
        for frame in stack.frames:
            if any(name in frame.filename for name in OURS):
                assert SECRET not in "".join(str(node) for node in (frame.locals or {}).values()), frame.name


BAD_ARGUMENTS = [
    *({"timeout": 0}, {"max_concurency": 3}, {"dimensions": 4000}, {"on_long_text": "cut"}, {"cache": 5}),
    *({"base_url": "nowhere"}, {"model": "opnai:x"}, {"model": None}, {"pickle_api_key": 1}, {"rate_limiter": 5}),
    *({"api_key": f"{KEY} {KEY}"}, {"api_key": f"{KEY}\n{KEY}"}, {"api_key": [KEY]}, {"api_key": {KEY: KEY}}),
    *({"apikey": KEY}, {"model": KEY}, {"model": "local:nowhere"}, {"headers": KEY}, {"headers": {f"{KEY} b": "c"}}),
    *({"headers": {"a": f"{KEY}\r\n"}}, {"headers": {"Host": KEY}}, {"proxy": KEY}, {"ca_bundle": "/no/such.pem"}),
    *({"base_url": f"http://user:{KEY}@host"}, {"base_url": f"http://host/v1?key={KEY}"}),
    *(
        {"cache": f"redis://user:{KEY}@host"},
        {"cache": ["a", f"acme://host?token={KEY}"]},
        {"cache": f"redis://[{KEY}"},
    ),
    *({"cache": f"a,redis://:{KEY}@host"}, {"coordination": f"rediss://:{KEY}@host:6379/0"}),
]


@pytest.mark.parametrize("wrong", BAD_ARGUMENTS, ids=lambda wrong: "-".join(wrong))
def test_the_traceback_of_a_constructor_shows_no_secret(embedder_class, wrong):
    arguments = {"model": OPENAI, "api_key": KEY, "headers": HEADERS, "proxy": PROXY, "cache": False, **wrong}
    with pytest.raises((EmbedKitError, TypeError)) as failed:
        embedder_class(**arguments)
    assert_no_leak(failed.value)


@pytest.mark.parametrize("name", ["openai_api_key", "default_headers", "azure_deployment", "http_client", "nonsense"])
@pytest.mark.parametrize("kind", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_the_traceback_shows_no_secret_in_an_argument_of_a_replaced_class(kind, name):
    with pytest.raises(EmbedKitError) as failed:
        kind(model=OPENAI, **{name: KEY}, timeout=0)
    assert_no_leak(failed.value)


@pytest.mark.parametrize("kind", [EmbedKitEmbeddings, EmbedKitEmbedding])
@pytest.mark.parametrize("update", [{"timeout": 0}, {"api_key": f"{KEY} x"}, {"headers": {"Host": KEY}}], ids=repr)
def test_the_traceback_of_a_copy_shows_no_secret(kind, update):
    model = kind(model=OPENAI, api_key=KEY, headers=HEADERS, proxy=PROXY, cache=False)
    for copied in (model.model_copy, model.copy):
        with pytest.raises(EmbedKitError) as failed:
            copied(update={"api_key": KEY, **update})
        assert_no_leak(failed.value)


@pytest.mark.parametrize(
    "option", [{"timeout": 0}, {"api_key": f"{KEY} x"}, {"apikey": KEY}, {"user": 1}, {}], ids=repr
)
def test_the_traceback_of_a_call_shows_no_secret_in_its_options(option):
    model = EmbedKitEmbeddings(model=OPENAI, api_key="sk-other", cache=False)
    texts = ["a"] if option else [""]  # an error of the arguments, or of the call
    calls = [
        lambda options: model.embed_documents(texts, **options),
        lambda options: model.embed_query(texts[0], **options),
        lambda options: asyncio.run(model.aembed_documents(texts, **options)),
        lambda options: asyncio.run(model.aembed_query(texts[0], **options)),
    ]
    for call in calls:
        with pytest.raises(EmbedKitError) as failed:
            call({"api_key": KEY, "headers": HEADERS, **option})
        assert_no_leak(failed.value)


def refused_assignment(kind, name):
    embedder = kind(model=OPENAI, api_key="sk-other", cache=False)
    with pytest.raises((AttributeError, ValueError)) as failed:
        setattr(embedder, name, KEY)
    assert_no_leak(failed.value)
    assert failed.value.__context__ is None
    assert "pydantic" not in "".join(traceback.format_tb(failed.value.__traceback__))


def test_the_traceback_of_an_assignment_to_a_setting_shows_no_secret(embedder_class):
    refused_assignment(embedder_class, "api_key")


def test_the_traceback_of_an_assignment_to_an_unknown_name_shows_no_secret(framework_class):
    refused_assignment(framework_class, "apikey")


@pytest.mark.parametrize(
    "wrong", [{"apikey": KEY}, {"base_url": f"http://u:{KEY}@h"}, {"api_key": KEY}, {"model": KEY}]
)
@pytest.mark.parametrize("place", ["mapping", "file", "argument"])
def test_the_traceback_of_a_configuration_shows_no_secret(tmp_path, wrong, place):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"model": OPENAI, **wrong}))
    config, arguments = {"mapping": ({**wrong}, {}), "file": (file, {}), "argument": ({"timeout": 0}, wrong)}[place]
    with pytest.raises(EmbedKitError) as failed:
        Embedder.from_config(config, **arguments)
    assert_no_leak(failed.value)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "HTTPS_PROXY", "VOYAGE_API_KEY_PATH"])
def test_the_traceback_shows_no_secret_of_the_environment(variable, monkeypatch, tmp_path):
    value = f"{KEY} {KEY}" if variable != "HTTPS_PROXY" else f"ftp://{KEY}"
    if variable == "VOYAGE_API_KEY_PATH":
        (tmp_path / "key").write_text(value)
        value = str(tmp_path / "key")
    monkeypatch.setenv(variable, value)
    model = OPENAI if variable == "OPENAI_API_KEY" else "voyage:voyage-4"
    key = KEY if variable == "HTTPS_PROXY" else None
    with pytest.raises(EmbedKitError) as failed:
        Embedder(model, api_key=key, headers=HEADERS, cache=False, max_retries=0).embed(["a"])
    assert_no_leak(failed.value)


def test_the_traceback_of_a_local_model_shows_no_secret(monkeypatch):
    for name, value in {"headers": HEADERS, "proxy": PROXY}.items():
        with pytest.raises(EmbedKitError) as failed:
            Embedder("local:nowhere", cache=False, **{name: value})
        assert_no_leak(failed.value)


def test_the_traceback_of_unpickling_shows_no_secret(monkeypatch):
    pickled = pickle.dumps(Embedder(OPENAI, api_key=KEY, headers=HEADERS, cache=False, pickle_api_key=True))
    monkeypatch.setenv("OPENAI_BASE_URL", "nowhere")
    broken = pickled.replace(b"https://api.openai.com/v1", b"nowhere://api.openai.com/")
    with pytest.raises(EmbedKitError) as failed:
        pickle.loads(broken)
    assert_no_leak(failed.value)


FAULTS = {
    "refused": Fault(status=401),
    "bad request": Fault(status=404),
    "not json": Fault(raw=b"<html>"),
    "cut": Fault(cut=True),
    "hanging": Fault(hang=True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("model", "kind"),
    {
        "openai:m": OpenAIServer,
        "voyage:voyage-4": VoyageServer,
        "cohere:embed-v4.0": CohereServer,
        "nomic:nomic-embed-text-v1.5": NomicServer,
        "bedrock:cohere.embed-v4:0": BedrockServer,
        "google:gemini-embedding-001": GoogleServer,
    }.items(),
)
def test_the_traceback_of_a_failed_call_shows_no_secret(model, kind, fault):
    with kind(api_key=None) as server:
        server.fault_for(lambda texts, number: FAULTS[fault])
        settings = {"base_url": server.base_url, "cache": False, "max_retries": 0}
        settings["timeout"] = 0.2 if fault == "hanging" else 60.0
        for api_key in (KEY, lambda: KEY):
            with pytest.raises(EmbedKitError) as failed:
                Embedder(model, api_key=api_key, headers={"x-key": SECRET}, **settings).embed(["a"])
            assert_no_leak(failed.value)


@pytest.mark.parametrize("result", [f"{KEY} {KEY}", [KEY]], ids=["invalid", "list"])
def test_the_traceback_of_a_key_function_shows_no_key_in_our_frames(result):
    with pytest.raises(EmbedKitError) as failed:
        Embedder(OPENAI, api_key=lambda: result, cache=False, max_retries=0).embed(["a"])
    assert_no_leak(failed.value)


def test_the_test_sees_a_secret_in_a_frame():
    def leak(api_key):
        sys.modules[__name__].no_such_name  # noqa: B018

    leak.__globals__["__name__"], name = "embedkit_core.leak", leak.__globals__["__name__"]
    try:
        with pytest.raises((AttributeError, KeyError)) as failed:
            leak(KEY)
        assert leaks(failed.value)
    finally:
        leak.__globals__["__name__"] = name


def test_a_hidden_value_is_neither_shown_nor_pickled():
    hidden = hide(KEY)
    assert SECRET not in f"{hidden} {hidden!r} {hidden!s}"
    assert hide(hidden) is hidden
    assert hide(None) is None
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Hidden(KEY))


@pytest.mark.parametrize(
    "url",
    ["http://a.example:80/v1", "nowhere", "", None, 5, "http://[::1]/v1", "//x", "//x?api-version=2024-10-21-preview"],
)
def test_an_address_without_a_login_or_query_is_not_masked(url):
    assert mask_login(url) == url
