"""Nomic's wire format and refusals, with a local server."""

import json
from decimal import Decimal

import numpy as np
import pytest
from support.embedders import error_texts, long_text, numbered, statuses
from support.json_servers import NomicServer, invalid, nomic_vector
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

MODEL = "nomic:nomic-embed-text-v1.5"
TEXTS = numbered(5)
# The example of docs.nomic.ai/reference/endpoints/nomic-embed-text, read 2026-11-30, with a row of the model's width.
DOCUMENTED_REPLY = {
    "embeddings": [[0.5] * 768],
    "usage": {"prompt_tokens": 7, "total_tokens": 7},
    "model": "nomic-embed-text-v1.5",
}
QUOTA = "You have exceeded your 10000000 free tokens of Nomic Embedding API usage."


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("NOMIC_API_KEY", raising=False)


@pytest.fixture
def server():
    with NomicServer() as started:
        yield started


def nomic(server, model=MODEL, **settings):
    return Embedder(model, **{"base_url": server.base_url, "api_key": server.api_key, "cache": False, **settings})


def expected(texts, task="search_document", dimensions=768):
    return np.stack([nomic_vector(text, task, dimensions) for text in texts])


class TestNomic(ServedSuite):
    """A server that repeats text and key in every refusal."""

    server_class = NomicServer
    model = MODEL
    api_key = "nk-test-key-of-mine"
    other_model = "nomic:nomic-embed-text-v1"
    other_dimensions = 256
    wrong_dimensions = 63
    asymmetric = True

    @property
    def options(self):
        return {"task_type": "clustering"}

    def faults(self):
        return {
            "quota": Fault(status=400, body=self.server.error(QUOTA)),
            "bad_request": Fault(status=404, body=self.server.error("model 'x' not found")),
            "bad_text": Fault(status=422, body=invalid("texts", "not valid")),
        }


def test_the_request_and_the_reply_are_as_documented(server):
    server.faults = [Fault(raw=json.dumps(DOCUMENTED_REPLY).encode())]
    result = nomic(server).embed(["The quick brown fox"])
    [request] = server.requests
    assert request.body == {
        "texts": ["The quick brown fox"],
        "model": "nomic-embed-text-v1.5",
        "task_type": "search_document",
        "long_text_mode": "truncate",
    }
    np.testing.assert_allclose(result.vectors, [[768**-0.5] * 768], rtol=1e-6)
    assert result.usage.tokens == 7
    assert result.usage.cost_usd == Decimal("0.0000007")
    nomic(server, dimensions=256).embed_query("fox")
    assert server.requests[1].body == request.body | {
        "texts": ["fox"],
        "task_type": "search_query",
        "dimensionality": 256,
    }
    assert not server.unknown_paths


@pytest.mark.parametrize("task", ["classification", "clustering"])
def test_a_task_is_the_task_type_of_queries_and_documents(server, task):
    made = nomic(server, task=task)
    np.testing.assert_allclose(made.embed_documents(TEXTS), expected(TEXTS, task), atol=1e-6)
    np.testing.assert_allclose(made.embed_query(TEXTS[0]), expected(TEXTS[:1], task)[0], atol=1e-6)


def test_fewer_dimensions_from_the_cache_are_those_of_the_server(server, tmp_path):
    nomic(server, cache=tmp_path).embed(TEXTS)
    cut_here = nomic(server, dimensions=128, cache=tmp_path).embed(TEXTS)
    assert cut_here.usage.requests == 0
    np.testing.assert_allclose(cut_here.vectors, expected(TEXTS, dimensions=128), atol=1e-6)
    np.testing.assert_allclose(nomic(server, dimensions=128).embed(TEXTS).vectors, cut_here.vectors, atol=1e-6)


def test_no_request_has_more_than_50_texts_and_lower_limits_are_learned(server):
    np.testing.assert_allclose(nomic(server).embed(numbered(120)).vectors, expected(numbered(120)), atol=1e-6)
    assert set(statuses(server)) == {200}
    server.max_inputs, server.max_tokens_per_request = 10, 60
    texts = numbered(40, tokens=20)
    np.testing.assert_allclose(nomic(server).embed(texts).vectors, expected(texts), atol=1e-6)


def test_a_text_that_is_certainly_too_long_is_shortened_here_because_the_server_would_not_tell(server):
    server.max_tokens_per_text = 40
    told = {"model_info": {"text_tokens": 40}}
    assert nomic(server, **told).embed(["short", long_text(60)]).truncated == (1,)
    with pytest.raises(PartialFailureError) as caught:
        nomic(server, on_long_text="error", **told).embed(["short", long_text(60)])
    assert isinstance(caught.value.failed[1], TextTooLongError)
    assert {request.body["long_text_mode"] for request in server.requests} == {"truncate"}


def test_the_price_is_second_hand_so_a_budget_in_usd_needs_prices(server):
    with pytest.raises(BudgetError, match="prices="):
        nomic(server, budget_usd=1).embed(TEXTS)
    assert not server.requests
    assert len(nomic(server, budget_usd=1, prices={MODEL: Decimal("0.10")}).embed(TEXTS).vectors) == 5


@pytest.mark.parametrize(
    ("status", "message", "error", "shown"),
    [
        (400, QUOTA, QuotaError, "no credit"),
        (401, "Invalid authorization token", AuthenticationError, "NOMIC_API_KEY"),
        (403, "Not authenticated", AuthenticationError, "HTTP 403"),
        (404, "Not Found", BadRequestError, "HTTP 404"),
        (422, [{"loc": ["body", "task_type"], "msg": "not permitted"}], BadRequestError, "body.task_type"),
        (429, "Too Many Requests", RateLimitError, "HTTP 429"),
        (502, "Bad Gateway", UnavailableError, "HTTP 502"),
    ],
    ids=["free tokens", "401", "403", "404", "422", "429", "502"],
)
def test_each_refusal_of_nomic_becomes_the_right_error(server, status, message, error, shown):
    server.fault_for(lambda texts, number: Fault(status=status, body={"detail": message}))
    with pytest.raises(error, match=shown) as caught:
        nomic(server, max_retries=0).embed(TEXTS)
    assert len(server.requests) == 1
    assert caught.value.model == MODEL
    assert getattr(caught.value, "counts_requests", True)
    assert "test-key" not in error_texts(caught.value)


def test_a_refusal_that_names_the_long_text_fails_only_that_text(server):
    """The words of Nomic's own implementation, gpt4all, for the mode that averages."""
    texts = [*TEXTS, long_text(60)]
    said = "length of text at index {} is 9001 tokens which exceeds limit of 8192"

    def fault(sent, number):
        return Fault(status=400, body={"detail": said.format(sent.index(texts[5]))}) if texts[5] in sent else None

    server.fault_for(fault)
    with pytest.raises(PartialFailureError) as caught:
        nomic(server, on_long_text="error").embed(texts)
    assert list(caught.value.failed) == [5]
    assert (caught.value.failed[5].tokens, caught.value.failed[5].limit) == (9001, 8192)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"embeddings": null}', b'{"data": []}'])
def test_a_reply_of_another_shape_is_refused(server, body):
    server.fault_for(lambda texts, number: Fault(raw=body))
    with pytest.raises(BadReplyError, match="not a list of embeddings"):
        nomic(server).embed(["x"])


def test_a_key_is_required_at_nomics_own_host_only(server, monkeypatch):
    for address in (None, "https://api-atlas.nomic.ai/v1", "https://API-atlas.nomic.ai/"):
        with pytest.raises(ConfigurationError, match="NOMIC_API_KEY"):
            Embedder(MODEL, base_url=address, cache=False)
    monkeypatch.setenv("NOMIC_API_KEY", server.api_key)
    assert len(nomic(server, api_key=None).embed(TEXTS).vectors) == 5


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/embedding", "/v1/embedding/text"])
def test_a_base_url_may_have_the_path_or_not(server, end):
    assert len(nomic(server, base_url=f"{server.origin}{end}").embed(TEXTS).vectors) == 5
