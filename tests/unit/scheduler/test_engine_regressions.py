"""What hostile readers of the code found, each with the smallest thing that showed it."""

import asyncio
import enum
import json
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.embedders import cancel_in_flight
from support.openai_server import Fault, OpenAIServer

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    ConfigurationError,
    Embedder,
    EmbedKitError,
    RequestTooLargeError,
)
from embedkit_core.common.types import Entry
from embedkit_core.engine.runtime.process import engine
from embedkit_core.testing import FakeServer
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

MODEL = "text-embedding-3-small"


def fake(server: FakeServer, **settings) -> Embedder:
    return Embedder("fake:model", base_url=server.url, **{"cache": False} | settings)


def open_ai(server: OpenAIServer, **settings) -> Embedder:
    return Embedder(MODEL, base_url=server.base_url, **{"api_key": "test-key", "cache": False} | settings)


class DictCache:
    def __init__(self, rows=None):
        self.rows = {} if rows is None else rows

    def get_many(self, keys):
        return {key: self.rows[key] for key in keys if key in self.rows}

    def set_many(self, items):
        self.rows.update(items)

    def close(self):
        pass


class Animal(enum.StrEnum):
    CAT = "cat"

    def __str__(self):
        return "Animal.CAT"


def test_a_text_that_shows_itself_as_another_is_sent_as_it_is_keyed():
    server = FakeServer()
    fake(server).embed([Animal.CAT])
    assert server.received[0].texts == ("cat",)


def test_a_row_of_one_number_is_not_spread_over_a_whole_row():
    def shorten(reply):
        reply["data"][1]["embedding"] = np.array([0.5], dtype="<f4")
        return reply

    with OpenAIServer() as server:
        server.faults.append(Fault(transform=shorten))
        with pytest.raises(BadReplyError):
            open_ai(server).embed(["a", "b"])


@pytest.mark.parametrize("adapter", [EmbedKitEmbeddings, EmbedKitEmbedding])
def test_an_adapter_never_says_other_settings_than_it_has(adapter):
    server = FakeServer()
    made = adapter(model="fake:model", base_url=server.url, cache=False)
    with pytest.raises(ValueError, match="frozen"):
        made.dimensions = 4
    other = made.model_copy(update={"dimensions": 4})
    assert other.dimensions == other.embedder.dimensions == 4
    assert made.model_copy().embedder.dimensions == made.embedder.dimensions == 8


@pytest.mark.parametrize("key", ["test-key\n", "  test-key ", "test-key\r\n"])
def test_white_space_around_a_key_is_taken_off(key, monkeypatch):
    with OpenAIServer() as server:
        open_ai(server, api_key=key).embed(["one"])
        monkeypatch.setenv("OPENAI_API_KEY", key)
        open_ai(server, api_key=None).embed(["two"])


@pytest.mark.parametrize("key", ["sk-\u2026abc", "two words", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_before_any_request(key):
    with pytest.raises(ConfigurationError, match="api_key is empty, or holds") as caught:
        Embedder(f"openai:{MODEL}", api_key=key)
    assert key not in str(caught.value)


def test_a_key_that_stayed_behind_is_missed_at_the_first_request_and_not_when_unpickling():
    left = pickle.loads(pickle.dumps(Embedder(f"openai:{MODEL}", api_key="secret-key", cache=False)))
    with pytest.raises(AuthenticationError, match="OPENAI_API_KEY"):
        left.embed(["one"])


def test_a_new_lane_for_every_call_costs_no_memory_and_no_time():
    server = FakeServer()
    for i in range(1200):
        fake(server, provider_options={"user": str(i)}).embed(["one"])
    scheduler = engine().account(fake(server).provider).scheduler
    assert len(scheduler.dispatcher._queues) <= 513
    assert len(scheduler.dispatcher.busy) <= 2


def test_withdrawn_texts_do_not_stay_in_the_queues():
    server = FakeServer()
    embedder = fake(server, max_concurrency=1)
    embedder.embed(["warm up"])
    server.hold()

    asyncio.run(cancel_in_flight(embedder, server, [f"text {i}" for i in range(5000)], 2))
    account = engine().account(embedder.provider)
    seen = threading.Event()
    engine().call(account, seen.set)
    assert seen.wait(10)
    assert all(len(queue._bulk) <= 64 for queue in account.scheduler.dispatcher._queues.values())
    server.release()


def test_a_server_that_takes_no_request_at_all_is_not_asked_for_each_text():
    server = FakeServer()
    server.fault_for = lambda texts: RequestTooLargeError("413")
    with pytest.raises(RequestTooLargeError):
        fake(server).embed([f"text {i}" for i in range(2000)])
    assert len(server.received) <= 40


def test_one_text_that_is_always_too_large_teaches_no_limit():
    server = FakeServer()
    embedder = fake(server, on_error="return")
    embedder.embed(["warm up"])
    server.fault_for = lambda texts: RequestTooLargeError("413") if "odd" in texts else None
    assert list(embedder.embed([*(f"text {i}" for i in range(200)), "odd"]).failed) == [200]
    before = len(server.received)
    embedder.embed([f"other {i}" for i in range(1000)])
    assert len(server.received) - before <= 20


def test_a_refused_parameter_that_is_too_long_is_no_long_text():
    error = {"message": "'user' is too long: 80 > 64", "type": "invalid_request_error", "param": "user", "code": "x"}
    with OpenAIServer() as server:
        server.fault_for(lambda texts, n: Fault(status=400, body={"error": error}))
        with pytest.raises(BadRequestError, match="for its user"):
            open_ai(server, provider_options={"user": "u" * 80}).embed([f"text {i}" for i in range(200)])
        assert len(server.requests) == 1


@pytest.mark.parametrize("spell", [str, json.dumps, repr])
@pytest.mark.parametrize("text", ["pin 1234\npwd hunter2\nmum Rose", "\u043f\u0430\u0440\u043e\u043b\u044c 7 2 9"])
@pytest.mark.parametrize("field", ["message", "param"])
def test_a_text_echoed_in_any_spelling_and_any_field_is_not_repeated(field, text, spell):
    error = {"message": "bad", "type": "t", "param": "input", "code": "c"} | {field: f"Invalid: {spell(text)}"}
    with OpenAIServer() as server:
        server.fault_for(lambda texts, n: Fault(status=400, body={"error": error}))
        with pytest.raises(BadRequestError) as caught:
            open_ai(server).embed([text])
        assert "Invalid" not in str(caught.value)


def test_a_width_that_changed_behind_a_name_is_said_and_counted_once():
    with OpenAIServer(dimensions=16) as server:
        cache = DictCache()
        embedder = Embedder("some-model", base_url=server.base_url, api_key="test-key", cache=cache)
        cache.rows[bytes.fromhex(embedder.explain("old").key)] = Entry(np.ones(8, np.float32))
        failed = Embedder(
            "some-model", base_url=server.base_url, api_key="test-key", cache=cache, on_error="return"
        ).embed(["new", "old"])
        usage = failed.usage
        assert usage.texts == usage.cache_hits + usage.sent + usage.coalesced + usage.failed
        with pytest.raises(ConfigurationError, match="two widths"):
            Embedder("some-model", base_url=server.base_url, api_key="test-key", cache=cache).embed(["new", "old"])
        assert len(server.requests) == 1


GARBAGE = [
    np.ones(8, np.float32),
    Entry(np.ones((1, 8), np.float32)),
    Entry(np.array(["x"])),
    Entry(np.full(8, np.nan, np.float32)),
    Entry(np.ones(8)),
    None,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_from_a_cache_of_the_users_is_a_miss(garbage):
    server, cache = FakeServer(), DictCache()
    embedder = fake(server, cache=cache)
    cache.rows[bytes.fromhex(embedder.explain("one").key)] = garbage
    for _ in range(2):
        assert np.array_equal(embedder.embed(["one"]).vectors[0], server.vector("one", server.received[0].body))
    assert len(server.received) == 1


def test_a_cache_cannot_change_what_callers_get():
    class Scribbler(DictCache):
        def set_many(self, items):
            for _, entry in items:
                entry.vector[:] = 0

    server = FakeServer()
    vector = fake(server, cache=Scribbler()).embed(["one"]).vectors[0]
    assert np.array_equal(vector, server.vector("one", server.received[0].body))


def test_a_cache_that_embeds_while_it_is_written_to_is_told_and_does_not_hang():
    found: list[BaseException] = []

    class Nested(DictCache):
        def set_many(self, items):
            try:
                fake(FakeServer()).embed(["two"])
            except EmbedKitError as error:
                found.append(error)

    fake(FakeServer(), cache=Nested()).embed(["one"])
    assert "would wait for the thread it runs on" in str(found[0])


def test_a_log_handler_that_embeds_does_not_hang_on_the_cache_it_hears_of(tmp_path):
    server = FakeServer()
    first = fake(server, cache=tmp_path)
    first.embed(["one"])
    first.close()
    next(tmp_path.rglob("cache.db")).write_bytes(b"no database" * 1000)
    heard: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record):
            heard.append(len(fake(server, cache=tmp_path).embed(["one"]).vectors))

    handler = Handler()
    logging.getLogger("embedkit_core").addHandler(handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(fake(server, cache=tmp_path).embed, ["one"]).result(30).vectors) == 1
    finally:
        logging.getLogger("embedkit_core").removeHandler(handler)
    assert heard


@pytest.mark.parametrize("where", ["a file", "under a file"])
def test_a_cache_that_can_never_be_a_folder_is_refused_at_once(tmp_path, where):
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is a file"):
        fake(FakeServer(), cache=file if where == "a file" else file / "cache")
    assert file.read_text(encoding="utf-8") == "mine"


def test_many_bad_texts_are_found_and_the_others_kept():
    server = FakeServer()
    server.rejected_texts = {f"text {i}" for i in range(0, 1000, 10)}
    result = fake(server, on_error="return").embed([f"text {i}" for i in range(1000)])
    assert sorted(result.failed) == list(range(0, 1000, 10))
    assert all(isinstance(error, BadTextError) for error in result.failed.values())
    assert len(server.received) < 1000
