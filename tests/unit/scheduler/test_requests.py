"""How texts become requests, and which replies are accepted."""

import json
import subprocess
import sys
import textwrap
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.embedders import fake_embedder, numbered, openai_embedder, statuses, texts_sent
from support.openai_client import expected
from support.openai_server import Fault, OpenAIServer, vector_of

from embedkit_core import Usage
from embedkit_core.common.errors import BadReplyError, RequestTooLargeError
from embedkit_core.common.types import Limits, Reply
from embedkit_core.engine.scheduler.items import RequestSpec
from embedkit_core.engine.scheduler.replies import validate
from embedkit_core.testing import FakeServer

OLLAMA = "nomic-embed-text:latest"


@pytest.fixture
def ollama():
    with OpenAIServer(api_key=None, dimensions=768, base64=False) as running:
        yield running


def ollama_vectors(texts):
    return np.array([vector_of(text, 768, 768, OLLAMA) for text in texts])


# Batching and limits


def test_no_request_exceeds_the_limits_of_the_model(server):
    texts = numbered(1000, tokens=1000)
    result = openai_embedder(server).embed(texts)
    assert max(len(request.texts) for request in server.requests) <= 2048
    assert max(request.tokens for request in server.requests) <= 300_000
    assert set(statuses(server)) == {200}
    assert np.array_equal(result.vectors, expected(texts))
    usage = Usage(texts=1000, sent=1000, requests=len(server.requests), tokens=1_000_000, priced_usd=Decimal("0.02"))
    assert result.usage == usage
    assert result.usage.cost_usd == Decimal("0.02")


def test_a_request_that_holds_too_many_tokens_is_halved_until_it_fits_and_the_limit_is_remembered():
    with OpenAIServer(max_tokens_per_request=100) as server:
        embedder = openai_embedder(server)
        first, second = numbered(200, tokens=10), [f"again {text}" for text in numbered(200, tokens=9)]
        result = embedder.embed(first)
        assert np.array_equal(result.vectors, expected(first))
        assert statuses(server).count(400) == 3  # 32 texts, and each half of them
        assert (result.usage.retries, result.usage.tokens) == (0, 2000)
        assert np.array_equal(embedder.embed(second).vectors, expected(second))
        assert statuses(server).count(400) == 3
        assert server.billed_texts == Counter(first + second)


def test_texts_of_a_too_large_request_do_not_make_later_requests_small():
    with OpenAIServer(max_tokens_per_request=3000) as server:
        embedder = openai_embedder(server)
        embedder.embed(numbered(2, tokens=2000))
        assert statuses(server) == [400, 200, 200]
        short = [f"short {text}" for text in numbered(64)]
        assert np.array_equal(embedder.embed(short).vectors, expected(short))
        assert len(server.requests) - 3 <= 4


def test_a_server_that_accepts_few_inputs_gets_all_texts_in_small_requests():
    with OpenAIServer() as server:
        refused = {"error": {"message": "batch size 32 > maximum allowed batch size 10", "type": "Validation"}}
        server.fault_for(lambda texts, number: Fault(status=422, body=refused) if len(texts) > 10 else None)
        texts = numbered(100)
        assert np.array_equal(openai_embedder(server).embed(texts).vectors, expected(texts))
        assert server.billed_texts == Counter(texts)
        assert len(server.requests) <= 3 + 100 // 8 + 1


def test_one_text_that_is_always_too_large_lowers_no_limit():
    server = FakeServer()
    embedder = fake_embedder(server, on_error="return")
    embedder.embed(["warm up"])
    server.fault_for = lambda texts: RequestTooLargeError("413") if "odd" in texts else None
    assert list(embedder.embed([*(f"text {i}" for i in range(200)), "odd"]).failed) == [200]
    before = len(server.received)
    embedder.embed([f"other {i}" for i in range(1000)])
    assert len(server.received) - before <= 20


def test_waiting_texts_are_spread_over_the_free_slots(server):
    embedder = openai_embedder(server, max_concurrency=8)
    cold, warm = numbered(500), [f"warm {text}" for text in numbered(500)]
    embedder.embed(cold)
    assert len(server.requests[0].texts) == 32  # the first request is small
    assert len(server.requests) == 1 + 8
    embedder.embed(warm)
    assert len(server.requests) == 1 + 8 + 8
    assert server.peak_in_flight <= 8


def test_twenty_texts_are_one_request(server):
    openai_embedder(server, max_concurrency=16).embed(numbered(20))
    assert len(server.requests) == 1


def test_max_batch_texts_bounds_a_request(server):
    texts = numbered(50)
    assert np.array_equal(openai_embedder(server, max_batch_texts=7).embed(texts).vectors, expected(texts))
    assert max(len(request.texts) for request in server.requests) == 7


def test_failing_batches_stay_batches(server):
    server.faults += [None] + [Fault(status=503, headers={"retry-after-ms": "1"})] * 8
    texts = numbered(500)
    result = openai_embedder(server, max_concurrency=8).embed(texts)
    assert np.array_equal(result.vectors, expected(texts))
    assert len(server.requests) <= 1 + 8 + 2 * 8
    assert result.usage.requests == len(server.requests)
    assert server.billed_texts == Counter(texts)


def test_no_text_is_altered(server):
    texts = [" leading", "two\nlines\r\n", "tab\tand\0nul", "e\u0301 \u00e9", "\U0001f600 \u202eabc", "A", "a", "a "]
    result = openai_embedder(server).embed(texts)
    assert texts_sent(server) == texts
    assert np.array_equal(result.vectors, expected(texts))


def test_a_prompt_precedes_each_text_of_its_input_type(server):
    embedder = openai_embedder(server, query_prompt="query: ", document_prompt="passage: ")
    assert np.array_equal(embedder.embed_query("x"), vector_of("query: x"))
    assert np.array_equal(embedder.embed_documents(["x"])[0], vector_of("passage: x"))
    assert all("prompt" not in request.body for request in server.requests)


# Compatible servers


def test_a_server_that_refuses_base64_gets_float_requests_from_then_on(ollama):
    texts = numbered(300)
    with openai_embedder(ollama, OLLAMA) as local:
        assert np.array_equal(local.embed_documents(texts), ollama_vectors(texts))
        assert np.array_equal(local.embed_query("again"), ollama_vectors(["again"])[0])
        assert local.dimensions == 768
    assert statuses(ollama).count(400) == 1
    encodings = [request.body["encoding_format"] for request in ollama.requests]
    assert encodings[0] == "float"  # shows the width of an unknown model
    assert encodings.count("base64") == 1
    assert {request.body["model"] for request in ollama.requests} == {OLLAMA}


REFUSALS_OF_BASE64 = {
    "OpenAI's shape": {"error": {"message": "Invalid value: 'base64'.", "param": "encoding_format"}},
    "words only": {"message": "encoding_format base64 is not supported"},
    "FastAPI's shape": {"detail": [{"loc": ["body", "encoding_format"], "msg": "Input should be 'float'"}]},
}


@pytest.mark.parametrize("shape", REFUSALS_OF_BASE64)
def test_a_refusal_of_base64_is_recognized_in_several_formats(server, shape):
    refusal = Fault(status=422, body=REFUSALS_OF_BASE64[shape])
    server.faults.append(refusal)
    assert np.array_equal(openai_embedder(server).embed_documents(["a", "b"]), expected(["a", "b"]))
    assert [request.body["encoding_format"] for request in server.requests] == ["base64", "float"]


def test_floats_in_reply_to_a_base64_request_are_read():
    with OpenAIServer(always_floats=True) as server:
        texts = numbered(40)
        assert np.array_equal(openai_embedder(server).embed_documents(texts), expected(texts))
        assert set(statuses(server)) == {200}


def test_an_unknown_model_needs_no_key_has_no_price_and_receives_strings(ollama, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    result = openai_embedder(ollama, OLLAMA, api_key=None).embed(["one two", "three"])
    usage = result.usage
    assert usage == Usage(texts=2, sent=2, requests=1, tokens=3, unpriced_tokens=3)
    assert usage.cost_usd is None
    assert all(type(text) is str for request in ollama.requests for text in request.body["input"])
    assert ollama.requests[0].headers["authorization"] == "Bearer no-key-needed"
    assert ollama.unknown_paths == []


def test_an_unknown_model_does_not_get_the_limits_of_openai(ollama):
    openai_embedder(ollama, OLLAMA, max_concurrency=1).embed(numbered(1000))
    assert max(len(request.texts) for request in ollama.requests) <= 256


OFFLINE = """
    import json, sys
    reached = []
    def watch(event, arguments):
        if event == "socket.connect":
            reached.append(arguments[1][:2])
        elif event == "socket.getaddrinfo":
            reached.append(arguments[:2])
    sys.addaudithook(watch)
    from embedkit_core import Embedder
    model, url, key = sys.argv[1:]
    embedder = Embedder(model, base_url=url, api_key=key or None, cache=False)
    width = len(embedder.embed_query("x"))
    tokenizers = sorted({"tiktoken", "tokenizers", "transformers", "torch"} & set(sys.modules))
    print(json.dumps([width, tokenizers, [list(one) for one in reached]]))
"""


@pytest.mark.parametrize("model", ["text-embedding-3-small", OLLAMA])
def test_a_query_is_one_request_to_one_host_and_needs_no_tokenizer(server, model):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(OFFLINE), model, server.base_url, "test-key"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    width, tokenizers, reached = json.loads(done.stdout)
    assert (width, tokenizers) == (1536, [])
    assert {f"http://{host}:{port}" for host, port in reached} == {server.origin}
    assert texts_sent(server) == ["x"]


# Replies


def test_rows_out_of_order_are_sorted_by_their_index():
    with OpenAIServer(shuffle_index=True) as server:
        texts = numbered(101)
        assert np.array_equal(openai_embedder(server).embed_documents(texts), expected(texts))


def test_rows_without_an_index_are_used_in_order():
    with OpenAIServer(omit_index=True) as server:
        texts = numbered(101)
        assert np.array_equal(openai_embedder(server).embed_documents(texts), expected(texts))


def test_a_reply_without_usage_is_accepted():
    with OpenAIServer(omit_usage=True) as server:
        result = openai_embedder(server).embed(["a", "b"])
        assert np.array_equal(result.vectors, expected(["a", "b"]))
        assert (result.usage.requests, result.usage.tokens) == (1, 0)


def change_row(field, value):
    def change(reply):
        reply["data"][1][field] = value(reply["data"][1][field])

    return Fault(transform=change)


def change_number(value):
    def change(reply):
        reply["data"][1]["embedding"][3] = value

    return Fault(transform=change)


DAMAGE = {
    "a vector is missing": Fault(transform=lambda reply: reply["data"].pop() and None),
    "a vector too many": Fault(transform=lambda reply: reply["data"].append(dict(reply["data"][0], index=3))),
    "an index twice": change_row("index", lambda index: 0),
    "an index too large": change_row("index", lambda index: 7),
    "an index below 0": change_row("index", lambda index: -2),
    "an index as text": change_row("index", str),
    "one index left out": Fault(transform=lambda reply: reply["data"][1].pop("index") and None),
    "one narrow vector": change_row("embedding", lambda vector: vector[:-1]),
    "a vector of one number": change_row("embedding", lambda vector: vector[:1]),
    "no embedding": change_row("embedding", lambda vector: None),
    "an embedding that is no base64": change_row("embedding", lambda vector: "~~~"),
    "not a number": change_number(np.nan),
    "infinity": change_number(-np.inf),
    "data that is null": Fault(raw=b'{"data": null}'),
    "a list": Fault(raw=b"[1, 2, 3]"),
    "nothing": Fault(raw=b""),
    "a page": Fault(raw=b"<html><body>Please log in</body></html>"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_malformed_reply_is_an_error_and_nothing_of_it_is_cached(server, tmp_path, damage):
    server.faults.append(DAMAGE[damage])
    texts = ["a", "b", "c"]
    with openai_embedder(server, cache=tmp_path) as embedder:
        with pytest.raises(BadReplyError) as caught:
            embedder.embed(texts)
        assert (caught.value.provider, caught.value.model) == ("openai", "openai:text-embedding-3-small")
        assert len(server.requests) == 1
        assert embedder.usage.failed == 3
        result = embedder.embed(texts)
    assert np.array_equal(result.vectors, expected(texts))
    assert (result.usage.cache_hits, texts_sent(server)) == (0, texts + texts)


@pytest.mark.parametrize("damage", ["not a number", "a vector is missing", "an index twice", "one narrow vector"])
def test_the_tokens_of_a_malformed_reply_are_in_the_usage(server, damage):
    server.faults.append(DAMAGE[damage])
    embedder = openai_embedder(server)
    with pytest.raises(BadReplyError):
        embedder.embed(["a", "b", "c"])
    assert embedder.usage.tokens == server.billed_tokens == 3


widths = st.integers(1, 16)
row_counts = st.integers(1, 12)


def spec(model: str) -> RequestSpec:
    return RequestSpec(b"wire", None, Limits(), "truncate", model, None, {})


@given(row_counts, widths, st.booleans(), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_valid_reply_is_accepted(n, width, known_width, number):
    assume(number != 0)  # a vector of zeros is none
    validate(Reply(np.full((n, width), number, np.float32), None), n, width if known_width else None, spec("a:b"))


@given(row_counts, widths, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_one_number_that_is_not_finite_is_refused(n, width, odd, data):
    vectors = np.ones((n, width), np.float32)
    vectors[data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, width - 1))] = odd
    with pytest.raises(BadReplyError, match="not finite"):
        validate(Reply(vectors, None), n, width, spec("a:b"))


@given(row_counts, widths, row_counts, widths)
def test_another_count_or_width_is_refused(n, width, rows, columns):
    assume((n, width) != (rows, columns))
    with pytest.raises(BadReplyError) as caught:
        validate(Reply(np.ones((rows, columns), np.float32), None), n, width, spec("some:model"))
    assert (caught.value.provider, caught.value.model) == ("some", "some:model")


@pytest.mark.parametrize("vectors", [np.ones((2, 3)), np.ones(2, np.float32), np.ones((2, 0), np.float32)])
def test_another_dtype_or_shape_is_refused(vectors):
    with pytest.raises(BadReplyError):
        validate(Reply(vectors, None), 2, None, spec("a:b"))
