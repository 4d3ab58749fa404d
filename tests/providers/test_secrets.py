"""API keys and texts appear only in requests, and where a framework itself puts them."""

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import asdict

import pytest
from langchain_core.load import dumpd, dumps
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from pydantic import BaseModel, Field
from support.openai_server import Fault, OpenAIServer

from embedkit_core import ConfigurationError, Embedder, EmbedKitError, PartialFailureError
from embedkit_core.providers.secrets import Secret
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

KEY = "sk-proj-Zx81Qp77LmNeverShow"
TEXT = "The patient Jane Roe was seen on the 4th of May with a broken scaphoid."
PIECE = "Jane Roe"
OPENAI = "openai:text-embedding-3-small"
CLASSES = [Embedder, EmbedKitEmbeddings, EmbedKitEmbedding]


@pytest.fixture
def server():
    with OpenAIServer(api_key=KEY, echo_input_in_errors=True) as running:
        yield running


@pytest.fixture(params=["argument", "environment"])
def made(request, server, tmp_path, monkeypatch):
    """A function that makes an object of a class, with the key from the argument or the environment."""

    def make(kind, **options):
        options = {"model": OPENAI, "base_url": server.base_url, "cache": tmp_path / "cache", **options}
        if request.param == "environment":
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
        else:
            options = {"api_key": KEY, **options}
        return kind(**options)

    return make


def embed(thing, texts):
    if isinstance(thing, Embedder):
        return thing.embed(texts)
    if isinstance(thing, EmbedKitEmbeddings):
        return thing.embed_documents(texts)
    return thing.get_text_embedding_batch(texts)


def core(thing):
    return thing if isinstance(thing, Embedder) else thing.embedder


def shows(thing: object, *, depth: int = 6) -> Iterator[str]:
    """Yield the repr and str of an object and, recursively, of its attributes."""
    yield repr(thing)
    yield str(thing)
    if depth and hasattr(thing, "__dict__") and not isinstance(thing, type):
        yield repr(vars(thing))
        for value in vars(thing).values():
            if type(value).__module__.partition(".")[0] in (
                "embedkit_core",
                "langchain_embedkit",
                "llamaindex_embedkit",
            ):
                yield from shows(value, depth=depth - 1)


def chain(error: BaseException, seen: set[int] | None = None) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts, and the errors in `failed`."""
    seen = set() if seen is None else seen
    if id(error) not in seen:
        seen.add(id(error))
        yield error
        carried = getattr(error, "failed", {}).values()
        for other in (error.__cause__, error.__context__, *carried):
            if other is not None:
                yield from chain(other, seen)


def assert_clean(said: object, *secrets: str) -> None:
    for secret in secrets or (KEY,):
        assert secret not in str(said)


def test_no_printed_object_or_attribute_shows_the_key(made, embedder_class):
    thing = made(embedder_class)
    embed(thing, [TEXT])
    for shown in (*shows(thing), *shows(core(thing)), f"{thing}", repr(core(thing).usage)):
        assert_clean(shown)
    assert_clean(repr(asdict(core(thing).explain(TEXT))), KEY, PIECE)
    assert_clean(core(thing).space)


@pytest.mark.parametrize("kind", CLASSES[1:], ids=["langchain", "llamaindex"])
def test_no_serialization_of_a_framework_shows_the_key(made, kind):
    thing = made(kind)
    assert isinstance(thing, BaseModel)
    for said in (thing.model_dump(), thing.model_dump_json(), json.dumps(thing.model_dump(mode="json")), dict(thing)):
        assert_clean(said)
    for said in (dumpd(thing), dumps(thing), dumpd({"embeddings": thing})):
        assert_clean(said)
    if isinstance(thing, EmbedKitEmbedding):
        for said in (thing.to_dict(), thing.to_json(), thing.to_payload()):
            assert_clean(said)


def test_no_pickle_holds_the_key(made, embedder_class):
    thing = made(embedder_class)
    embed(thing, [TEXT])
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        written = pickle.dumps(thing, protocol)
        assert KEY.encode() not in written
        assert PIECE.encode() not in written


def test_a_secret_is_neither_shown_nor_pickled():
    secret = Secret(KEY)
    assert_clean((repr(secret), str(secret), f"{secret}", secret.fingerprint))
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError, match="not pickled") as refused:
        pickle.dumps(secret)
    assert_clean(refused.value)


FAULTS = {
    "refused key": Fault.unauthorized(),
    "quota": Fault.quota(),
    "bad request": Fault(status=400, body={"error": {"message": f"cannot read: {TEXT} {KEY}", "param": "model"}}),
    "bad text": Fault(status=400, body={"error": {"message": f"cannot read: {TEXT} {KEY}"}}),
    "plain text": Fault(status=404, body=f"no such thing: {TEXT} {KEY}"),
    "throttled": Fault.rate_limited(),
    "server error": Fault(status=503, body={"error": {"message": f"failed on {TEXT} with {KEY}"}}),
    "cut": Fault(cut=True),
    "not json": Fault(raw=f"<html>{TEXT} {KEY}</html>".encode()),
    "odd reply": Fault(transform=lambda reply: {"data": [{"embedding": TEXT + KEY}], "model": "m"}),
    "no answer": Fault(hang=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_failure_shows_the_key_or_a_text(server, tmp_path, caplog, embedder_class, fault):
    caplog.set_level(logging.DEBUG, "embedkit_core")
    server.fault_for(lambda texts, number: FAULTS[fault])
    options = {"model": OPENAI, "base_url": server.base_url, "api_key": KEY, "cache": tmp_path, "max_retries": 0}
    with pytest.raises(EmbedKitError) as failed:
        embed(embedder_class(**options, timeout=0.2 if fault == "no answer" else 60.0), [TEXT])
    for error in chain(failed.value):
        for said in (str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception_only(error))):
            assert_clean(said, KEY, PIECE)
    assert_clean("".join(traceback.format_exception(failed.value)), KEY, PIECE)
    assert_clean(pickle.dumps(copy.copy(failed.value)), KEY, PIECE)
    assert_clean([record.getMessage() for record in caplog.records if record.name.startswith("embedkit")], KEY, PIECE)


def test_a_partial_failure_shows_neither_key_nor_text(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "embedkit_core")
    server.rejected_texts.add(TEXT)
    thing = Embedder(OPENAI, base_url=server.base_url, api_key=KEY, cache=tmp_path)
    with pytest.raises(PartialFailureError) as failed:
        thing.embed([TEXT, *(f"fine {i}" for i in range(20))])
    for error in chain(failed.value):
        assert_clean((str(error), repr(error), repr(vars(error))), KEY, PIECE, "fine 3")
        assert_clean(pickle.dumps(error), KEY, PIECE, "fine 3")
    result = thing.embed(["fine 3"])
    assert_clean((repr(result), str(result)), KEY, "fine 3")
    assert_clean(caplog.text, KEY, PIECE, "fine 3")


def test_no_exception_of_an_sdk_is_chained_to_an_error(server):
    """An SDK's exception holds the request with its headers, so none may be chained."""
    server.fault_for(lambda texts, number: Fault.unauthorized())
    thing = Embedder(OPENAI, base_url=server.base_url, api_key=KEY, cache=False)
    with pytest.raises(EmbedKitError) as failed:
        thing.embed([TEXT])
    assert {type(error).__module__.partition(".")[0] for error in chain(failed.value)} == {"embedkit_core"}


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": "1"}, {"max_concurency": 3}, {"dimensions": 4000}, {"on_long_text": "cut"},
     {"base_url": "nowhere"}, {"cache": 5}, {"query_prompt": 5}, {"model": "opnai:x"}, {"model": None}],
    ids=repr,
)  # fmt: skip
def test_the_error_of_an_invalid_setting_does_not_show_the_key(embedder_class, wrong):
    with pytest.raises(ConfigurationError) as refused:
        embedder_class(**{"model": OPENAI, "api_key": KEY, "cache": False, **wrong})
    for error in chain(refused.value):
        assert_clean((str(error), repr(error)))


def test_no_log_record_shows_the_key_or_a_text(made, caplog):
    caplog.set_level(logging.DEBUG, "embedkit_core")
    for kind in CLASSES:
        embed(made(kind), [TEXT, TEXT + " again"])
    assert_clean([r.getMessage() for r in caplog.records if r.name.startswith("embedkit")], KEY, PIECE)


def test_the_cache_files_hold_neither_key_nor_text(made, tmp_path):
    for kind in CLASSES:
        embed(made(kind), [TEXT])
    core(made(Embedder)).close()
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert files
    for path in files:
        written = path.read_bytes()
        assert not [secret for secret in (KEY, PIECE, TEXT[:12]) if secret.encode() in written], path.name


class Everything(BaseEventHandler):
    heard: list = Field(default_factory=list)

    def handle(self, event, **kwargs):
        self.heard.append(event)


def test_no_event_or_span_of_a_framework_shows_the_key(made, server):
    events, spans = Everything(), SimpleSpanHandler()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(events)
    dispatcher.add_span_handler(spans)
    try:
        embed(made(EmbedKitEmbedding), [TEXT])
        server.fault_for(lambda texts, number: Fault.unauthorized())
        with pytest.raises(EmbedKitError):
            embed(made(EmbedKitEmbedding), ["another"])
    finally:
        dispatcher.event_handlers.remove(events)
        dispatcher.span_handlers.remove(spans)
    assert events.heard
    for event in events.heard:
        assert_clean(event.model_dump())
    assert_clean((spans.completed_spans, spans.dropped_spans))


def test_embedders_with_different_keys_have_different_accounts_that_show_no_key(server, embedder_class):
    one, other = (
        embedder_class(model=OPENAI, base_url=server.base_url, api_key=key, cache=False) for key in (KEY, KEY + "2")
    )
    assert core(one).provider.account != core(other).provider.account
    assert_clean(core(one).provider.account)
