"""Replies and limits of the local OpenAI server, with the real SDK."""

import asyncio
import base64
import multiprocessing
import threading
from collections import Counter

import numpy as np
import openai
import pytest
from support.openai_client import MODEL, client, embed, expected, vectors
from support.openai_server import OpenAIServer, tokens_of, vector_of


@pytest.mark.parametrize("encoding", ["base64", "float", None])
async def test_every_row_is_the_vector_of_its_text_in_either_encoding(server, encoding):
    texts = ["one", "two words", "ünï ✓", "line\nbreak", "one"]
    options = {} if encoding is None else {"encoding_format": encoding}
    reply = await embed(server, texts, **options)
    if encoding == "base64":  # the SDK does not decode it if it was requested
        for item, row in zip(reply.data, expected(texts), strict=True):
            np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item.embedding), dtype="<f4"), row)
    else:
        np.testing.assert_array_equal(vectors(reply), expected(texts))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == 8
    assert reply.model == MODEL


def test_vectors_have_unit_length_and_differ_by_text_and_model():
    assert vector_of("a").dtype == np.float32
    assert np.linalg.norm(vector_of("a")) == pytest.approx(1, abs=1e-6)
    assert abs(vector_of("a") @ vector_of("b")) < 0.2
    assert abs(vector_of("a") @ vector_of("a", model="other")) < 0.2


async def test_fewer_dimensions_are_the_normalized_prefix(server):
    reply = await embed(server, ["a", "b"], dimensions=256)
    np.testing.assert_array_equal(vectors(reply), expected(["a", "b"], dimensions=256))
    prefix = vector_of("a")[:256].astype(np.float64)
    np.testing.assert_allclose(vectors(reply)[0], prefix / np.linalg.norm(prefix), atol=1e-7)


async def test_the_width_is_the_servers_and_the_vector_the_models():
    with OpenAIServer(dimensions=8) as server:
        np.testing.assert_array_equal(
            vectors(await embed(server, "a", model="nomic")), expected(["a"], dimensions=8, native=8, model="nomic")
        )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"] * 11, r"'\$\.input' is invalid"),
        ([], r"'\$\.input' is invalid"),
        (["a", ""], r"'\$\.input' is invalid"),
        ([[1, 2], [3]], r"'\$\.input' is invalid"),
        ([1, 2], r"'\$\.input' is invalid"),
        (["a", "b " * 9], r"maximum context length is 8 tokens, however you requested 9 tokens \(9 in your prompt;"),
    ],
)
async def test_a_request_over_a_limit_is_refused_as_documented(texts, message):
    with OpenAIServer(max_inputs=10, max_tokens_per_text=8) as server:
        with pytest.raises(openai.BadRequestError, match=message) as refused:
            await embed(server, texts)
        assert (refused.value.type, refused.value.code) == ("invalid_request_error", None)
        [request] = server.requests
        assert request.body["input"] == texts
        assert (request.status, request.outcome, server.billed_tokens) == (400, "refused", 0)


async def test_too_many_tokens_in_a_request_have_their_own_error_code():
    with OpenAIServer(max_tokens_per_request=10) as server:
        await embed(server, ["a b c d e"] * 2)
        with pytest.raises(openai.BadRequestError, match="Requested 11 tokens, max 10 tokens per request") as refused:
            await embed(server, ["a b c d e", "a b c d e f"])
    assert refused.value.type == refused.value.code == "max_tokens_per_request"


async def test_a_wrong_key_is_refused_and_any_key_is_enough_when_none_is_set(server):
    with pytest.raises(openai.AuthenticationError) as refused:
        await embed(server, "a", client_options={"api_key": "wrong"})
    assert refused.value.code == "invalid_api_key"
    with OpenAIServer(api_key=None) as open_server:
        await embed(open_server, "a", client_options={"api_key": "whatever"})


async def test_an_unknown_model_is_not_found():
    with OpenAIServer(models={MODEL}) as server:
        await embed(server, "a")
        with pytest.raises(openai.NotFoundError) as refused:
            await embed(server, "a", model="gpt-9")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(("model", "dimensions"), [("text-embedding-ada-002", 256), (MODEL, 1537), (MODEL, 0)])
async def test_unsupported_dimensions_are_refused(server, model, dimensions):
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        await embed(server, "a", model=model, dimensions=dimensions)


async def test_a_compatible_server_may_refuse_base64_or_ignore_it():
    with OpenAIServer(base64=False) as server:
        with pytest.raises(openai.BadRequestError) as refused:
            await embed(server, "a")
        assert refused.value.param == "encoding_format"
        await embed(server, "a", encoding_format="float")
    with OpenAIServer(always_floats=True) as server:
        reply = await embed(server, "a", encoding_format="base64")
        np.testing.assert_array_equal(vectors(reply), expected(["a"]))


async def test_a_shuffled_reply_carries_the_true_index():
    with OpenAIServer(shuffle_index=True) as server:
        reply = await embed(server, ["a", "b", "c"])
    assert [item.index for item in reply.data] == [1, 0, 2]
    np.testing.assert_array_equal(vectors(reply), expected(["b", "a", "c"]))


async def test_index_and_usage_can_be_missing():
    with OpenAIServer(omit_index=True, omit_usage=True) as server:
        reply = await embed(server, ["a", "b"])
    assert "index" not in reply.data[0].model_fields_set
    assert getattr(reply, "usage", None) is None


async def test_answers_carry_the_documented_headers():
    with OpenAIServer(requests_per_minute=600, headers={"x-ratelimit-reset-tokens": "6m0s"}) as server:
        async with client(server) as api:
            raw = await api.embeddings.with_raw_response.create(model=MODEL, input="a b")
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-ratelimit-limit-requests"] == "600"
    assert raw.headers["x-ratelimit-remaining-tokens"] == "9999998"
    assert raw.headers["x-ratelimit-reset-requests"] == "100ms"
    assert raw.headers["x-ratelimit-reset-tokens"] == "6m0s"


async def test_requests_reuse_their_connection(server):
    async with client(server) as api:
        for text in "abc":
            await api.embeddings.create(model=MODEL, input=text)
    assert (server.connections, len(server.requests)) == (1, 3)


async def test_requests_to_other_paths_are_recorded_separately(server):
    async with client(server) as api:
        with pytest.raises(openai.NotFoundError):
            await api.models.list()
    assert (server.unknown_paths, server.requests) == (["GET /v1/models"], [])


async def test_latency_is_the_least_time_an_answer_takes():
    with OpenAIServer(latency=0.02, latency_per_token=0.01) as server:
        await embed(server, "a b c")
        with pytest.raises(openai.BadRequestError):
            await embed(server, "")
    [answered, _] = server.requests
    assert answered.ended - answered.started >= 0.05


async def test_many_concurrent_requests_are_all_counted(server):
    texts = [f"text number {n}" for n in range(2000)]
    async with client(server) as api:
        batches = [texts[start : start + 20] for start in range(0, 2000, 20)]
        await asyncio.gather(*(api.embeddings.create(model=MODEL, input=batch) for batch in batches))
    assert server.billed_texts == Counter(texts)
    assert server.billed_tokens == sum(map(tokens_of, texts))
    assert 1 <= server.peak_in_flight <= 100


def test_the_sync_client_is_served_from_several_threads(server):
    def ask(text):
        with openai.OpenAI(base_url=server.base_url, api_key="test-key", max_retries=0) as api:
            found[text] = api.embeddings.create(model=MODEL, input=text).data[0].embedding

    found = {}
    threads = [threading.Thread(target=ask, args=(text,)) for text in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for text in "abc":
        np.testing.assert_array_equal(np.array(found[text], dtype=np.float32), vector_of(text))


def ask_in_child(base_url):
    with openai.OpenAI(base_url=base_url, api_key="test-key", max_retries=0, timeout=20) as api:
        return api.embeddings.create(model=MODEL, input="from a child").data[0].embedding


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_process_is_served(server, method):
    with multiprocessing.get_context(method).Pool(1) as pool:
        answer = pool.apply(ask_in_child, (server.base_url,))
        pool.close()
        pool.join()
    np.testing.assert_array_equal(np.array(answer, dtype=np.float32), vector_of("from a child"))
