"""Replies with HTTP 200 that have an error instead of vectors, as gateways send them."""

import pytest
from support.embedders import openai_embedder, statuses
from support.openai_replies import Fault
from support.openai_server import OpenAIServer, vector_of

from embedkit_core import (
    AuthenticationError,
    BadRequestError,
    QuotaError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.providers.openai.refusals import read_detail


def openrouter(code, message):
    return {"error": {"code": code, "message": message, "metadata": {"provider_name": "x"}}, "user_id": "user_1"}


def minimax(code, message):
    return {"vectors": None, "total_tokens": 0, "base_resp": {"status_code": code, "status_msg": message}}


RETRYABLE = {
    "OpenRouter 429": (openrouter(429, "Rate limited upstream"), RateLimitError),
    "OpenRouter 502": (openrouter(502, "Provider returned error"), UnavailableError),
    "OpenRouter 503": (openrouter("503", "No available provider") | {"data": []}, UnavailableError),
    "type": ({"error": {"message": "Slow down", "type": "rate_limit_error"}}, RateLimitError),
    "code": ({"error": {"message": "Oops", "type": "x", "code": "server_error"}}, UnavailableError),
    "MiniMax 1002": (minimax(1002, "rate limit"), RateLimitError),
    "MiniMax 1024": (minimax(1024, "internal error"), UnavailableError),
}
FINAL = {
    "OpenRouter 404": (openrouter(404, "No endpoints found for new/model"), BadRequestError, "No endpoints found"),
    "OpenRouter 402": (openrouter(402, "Insufficient credits"), QuotaError, "Insufficient credits"),
    "OpenRouter 401": (openrouter(401, "User not found"), AuthenticationError, "HTTP 401"),
    "string": ({"error": "Model is not loaded"}, BadRequestError, r"HTTP 200.*Model is not loaded"),
    "flat": (
        {"object": "error", "message": "Not an embedding model", "code": 400},
        BadRequestError,
        "Not an embedding",
    ),
    "MiniMax 1008": (minimax(1008, "insufficient balance"), QuotaError, "insufficient balance"),
    "MiniMax 2013": (minimax(2013, "invalid params, model"), BadRequestError, "invalid params, model"),
}


@pytest.fixture
def server():
    with OpenAIServer() as running:
        yield running


@pytest.mark.parametrize("case", RETRYABLE)
def test_an_error_in_a_reply_is_retried_if_its_code_says_so(server, case):
    body, kind = RETRYABLE[case]
    fault = Fault(status=200, body=body, headers={"retry-after-ms": "1"})
    server.faults = [fault]
    assert openai_embedder(server).embed(["a"]).vectors.tolist() == [vector_of("a").tolist()]
    assert statuses(server) == [200, 200]
    server.faults = [fault]
    with pytest.raises(kind, match=read_detail(body).message):
        openai_embedder(server, max_retries=0).embed(["a"])


@pytest.mark.parametrize("case", FINAL)
def test_an_error_in_a_reply_keeps_its_message_and_is_final(server, case):
    body, kind, message = FINAL[case]
    server.fault_for(lambda texts, number: Fault(status=200, body=body))
    with pytest.raises(kind, match=message):
        openai_embedder(server).embed(["a"])
    assert len(server.requests) == 1


def test_an_error_field_without_an_error_is_ignored(server):
    server.fault_for(
        lambda texts, number: Fault(
            transform=lambda reply: reply | {"error": None, "base_resp": {"status_code": 0, "status_msg": "success"}}
        )
    )
    assert openai_embedder(server).embed(["a"]).vectors.tolist() == [vector_of("a").tolist()]
