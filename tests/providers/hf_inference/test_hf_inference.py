"""The wire format and refusals of Hugging Face's hf-inference, with a local server."""

import json

import numpy as np
import pytest
from huggingface_hub import AsyncInferenceClient
from support.embedders import error_texts, long_text, numbered, statuses
from support.json_servers import HFInferenceServer, hf_vector
from support.openai_replies import Fault
from support.provider_suites import ServedSuite

from embedkit_core import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BudgetError,
    ConfigurationError,
    Embedder,
    PartialFailureError,
    QuotaError,
    RateLimitError,
    TextTooLongError,
    UnavailableError,
)

MODEL = "hf-inference:BAAI/bge-m3"
E5 = "hf-inference:intfloat/multilingual-e5-large"
TEXTS = numbered(5)
CREDITS = "You have exceeded your monthly included credits for Inference Providers."
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with HFInferenceServer() as started:
        yield started


def hf(server, model=MODEL, **settings):
    return Embedder(model, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **settings})


def expected(texts, model="BAAI/bge-m3"):
    return np.stack([hf_vector(text, model) for text in texts])


class TestHFInference(ServedSuite):
    """A model that the hub documents with prompts; the server repeats text and key in every refusal."""

    server_class = HFInferenceServer
    model = E5
    asymmetric = True
    api_key = "hf_test-key-of-mine"
    other_model = "hf-inference:sentence-transformers/all-MiniLM-L6-v2"
    wrong_dimensions = 1023

    @property
    def options(self):
        return {"truncation_direction": "Left"}

    def faults(self):
        loading = {"error": "Model BAAI/bge-m3 is currently loading", "estimated_time": 0.001}
        return {
            "quota": Fault(status=402, body=self.server.error(CREDITS)),
            "bad_request": Fault(status=400, body=self.server.error("Model x doesn't support task feature-extraction")),
            "bad_text": Fault(status=422, body=self.server.error("Tokenization error")),
            "unavailable": Fault(status=503, body=loading),
        }


async def test_the_request_is_that_of_the_hubs_own_client_with_the_documented_fields(server, monkeypatch):
    """AsyncInferenceClient would first ask the hub about a model by name, so it gets the whole address."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"{server.base_url}/models/BAAI/bge-m3/pipeline/feature-extraction"
    client = AsyncInferenceClient(model=address, provider="hf-inference", api_key=server.api_key)
    rows = await client.feature_extraction(TEXTS, normalize=True, truncate=False)
    await client.close()
    result = await hf(server).aembed(TEXTS)
    theirs, ours = server.requests
    assert ours.body == theirs.body == {"inputs": TEXTS, "normalize": True, "truncate": False}
    assert ours.headers["x-model"] == theirs.headers["x-model"] == "BAAI/bge-m3"
    assert ours.headers["authorization"] == theirs.headers["authorization"]
    np.testing.assert_array_equal(result.vectors, rows)
    np.testing.assert_allclose(rows, expected(TEXTS), atol=1e-6)


def test_compute_time_is_billed_so_no_tokens_and_no_price_are_known(server):
    assert hf(server).embed(TEXTS).usage.tokens == 0
    with pytest.raises(BudgetError, match="price"):
        hf(server, budget_usd=1).embed(["new"])
    assert len(server.requests) == 1


def test_the_prompts_and_dimensions_of_the_hub_apply(server):
    made = hf(server, E5)
    assert made.dimensions == 1024
    made.embed_documents(["x"])
    made.embed_query("x")
    assert [request.texts for request in server.requests] == [("passage: x",), ("query: x",)]
    assert all("prompt_name" not in request.body for request in server.requests)


def test_fewer_dimensions_are_truncated_here_and_never_asked_for(server):
    rows = hf(server, "hf-inference:Qwen/Qwen3-Embedding-0.6B", dimensions=256).embed(TEXTS).vectors
    whole = expected(TEXTS, "Qwen/Qwen3-Embedding-0.6B")[:, :256]
    np.testing.assert_allclose(rows, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    assert "dimensions" not in server.requests[0].body
    with pytest.raises(ConfigurationError, match="does not truncate vectors"):
        hf(server, "hf-inference:an/unknown-model", dimensions=256)


def test_no_request_has_more_than_32_texts_and_a_lower_limit_is_learned(server):
    np.testing.assert_allclose(hf(server).embed(numbered(100)).vectors, expected(numbered(100)), atol=1e-6)
    assert set(statuses(server)) == {200}
    server.max_inputs = 10
    np.testing.assert_allclose(hf(server).embed(numbered(40)).vectors, expected(numbered(40)), atol=1e-6)


def test_a_long_text_is_refused_and_then_truncated_by_the_server(server):
    server.max_tokens_per_text = 40
    texts = [*numbered(20), long_text(45)]
    result = hf(server, model_info={"text_tokens": 40}).embed(texts)
    assert result.truncated == (20,)
    kept = [*texts[:20], " ".join(texts[20].split()[:40])]
    np.testing.assert_allclose(result.vectors, expected(kept), atol=1e-6)
    assert [r.body["truncate"] for r in server.requests if r.status == 200 and texts[20] in r.texts] == [True]
    with pytest.raises(PartialFailureError) as caught:
        hf(server, on_long_text="error").embed(texts)
    assert isinstance(caught.value.failed[20], TextTooLongError)
    assert (caught.value.failed[20].tokens, caught.value.failed[20].limit) == (45, 40)


@pytest.mark.parametrize(
    "rows",
    [
        [[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]],
        [[[0.1, 0.2]], [[0.5, 0.6], [0.7, 0.8]]],
        [[[[0.1, 0.2], [0.3, 0.4]]], [[[0.5, 0.6], [0.7, 0.8]]]],
    ],
    ids=["equal lengths", "different lengths", "a list of lists each"],
)
def test_vectors_of_tokens_are_an_error_and_never_taken_for_vectors_of_texts(server, rows, tmp_path):
    server.fault_for(lambda texts, number: Fault(raw=json.dumps(rows[: len(texts)]).encode()))
    made = hf(server, "hf-inference:google-bert/bert-base-uncased", cache=tmp_path)
    for texts in (["x", "y"], ["x"]):
        with pytest.raises(BadReplyError, match="without pooling"):
            made.embed(texts)
    assert len(server.requests) == 2
    assert made.usage.cache_hits == 0


def test_a_reply_that_is_too_large_may_be_vectors_of_tokens(server):
    server.fault_for(lambda texts, number: Fault(raw=json.dumps([[[0.123456789] * 768] * 512]).encode()))
    with pytest.raises(BadReplyError, match=r"larger than .* vector of each token.*without pooling"):
        hf(server, "hf-inference:google-bert/bert-base-uncased").embed(["x"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "error", "shown"),
    [
        (400, {"error": "Model x doesn't support task 'feature-extraction'"}, BadRequestError, "serve this model"),
        (401, {"error": "Invalid username or password."}, AuthenticationError, "HF_TOKEN"),
        (402, {"error": CREDITS}, QuotaError, "no credit"),
        (403, {"error": "insufficient permissions"}, AuthenticationError, "permission for Inference Providers"),
        (404, "Not Found", BadRequestError, "serve this model"),
        (429, {"error": "Model is overloaded", "error_type": "Overloaded"}, RateLimitError, "HTTP 429"),
        (500, {"error": "Internal Server Error"}, UnavailableError, "HTTP 500"),
        (504, "<html>", UnavailableError, "HTTP 504"),
    ],
    ids=["task", "key", "credits", "permission", "model", "rate", "500", "504"],
)
def test_each_refusal_of_hf_inference_becomes_the_right_error(server, status, body, error, shown):
    server.fault_for(lambda texts, number: Fault(status=status, body=body))
    with pytest.raises(error, match=shown) as caught:
        hf(server, max_retries=0).embed(TEXTS)
    assert len(server.requests) == 1
    assert "test-key" not in error_texts(caught.value)


def test_a_model_that_is_loading_states_when_to_ask_again(server):
    loading = {"error": "Model BAAI/bge-m3 is currently loading", "estimated_time": 20.5}
    server.fault_for(lambda texts, number: Fault(status=503, body=loading))
    with pytest.raises(UnavailableError, match="currently loading") as caught:
        hf(server, max_retries=0).embed(TEXTS)
    assert caught.value.retry_after == 20.5


@pytest.mark.parametrize("body", [b"<html>", b'{"error": "x"}', b"[0.5, 0.5]", b"[[0.5], 1]"])
def test_a_reply_of_another_shape_is_refused(server, body):
    server.fault_for(lambda texts, number: Fault(raw=body))
    with pytest.raises(BadReplyError, match="not a list of embeddings"):
        hf(server).embed(["x"])


@pytest.mark.parametrize("name", VARIABLES)
def test_the_token_is_found_in_the_environment(server, monkeypatch, name):
    with pytest.raises(ConfigurationError, match="HF_TOKEN"):
        Embedder(MODEL, cache=False)
    monkeypatch.setenv(name, server.api_key)
    assert len(hf(server, api_key=None).embed(TEXTS).vectors) == 5
