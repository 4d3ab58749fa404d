"""Recorded or documented requests and replies of Google's APIs, through the real client.

Each file of tests/fixtures/recorded/google has a source. Its field `recorded` is "quoted" for what somebody quoted of
the service, "no" for a reply made from the documentation.
"""

import json

import numpy as np
import pytest
from support.google_server import GoogleServer, VertexServer
from support.openai_replies import Fault
from support.recorded import recorded

from embedkit_core.common import errors
from embedkit_core.common.types import Batch
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.catalogue import find
from embedkit_core.providers.google.provider import Google, Vertex
from embedkit_core.providers.secrets import Secret

PAIRS, ANSWERED, REFUSED = recorded("google")


def test_there_are_answers_and_refusals_of_both_apis_with_their_sources():
    assert (len(ANSWERED), len(REFUSED)) == (4, 16)
    assert {*ANSWERED, *REFUSED} == {*PAIRS}
    assert all(pair["source"].startswith("https://") and pair["read"] and pair["what"] for pair in PAIRS.values())
    assert {pair["recorded"] for pair in PAIRS.values()} == {"quoted", "no"}


async def exchange(pair):
    """Send the texts of a pair to a server that gives its reply; return the reply and the request."""
    provider, _, name = pair["asked"]["model"].partition(":")
    provider_class, server_class = {"google": (Google, GoogleServer), "vertex": (Vertex, VertexServer)}[provider]
    status, body = pair["reply"]["status"], pair["reply"]["body"]
    with server_class() as server:
        fault = Fault(raw=json.dumps(body).encode()) if status == 200 else Fault(status=status, body=body)
        server.fault_for(lambda texts, number: fault)
        made = provider_class(
            ProviderSettings(name, api_key=Secret("test-key"), base_url=server.base_url, info=find(name, provider))
        )
        client = made.connect()
        batch = Batch(pair["asked"]["texts"], made.request_body(pair["asked"]["input_type"]), 60.0)
        try:
            return await client.embed(batch)
        finally:
            await client.aclose()
            assert [request.body for request in server.requests] == [pair["request"]]


@pytest.mark.parametrize("name", ANSWERED)
async def test_a_documented_reply_of_google_gives_its_vectors_and_tokens(name):
    pair = PAIRS[name]
    reply = await exchange(pair)
    assert reply.vectors.dtype == np.float32
    normalized = reply.vectors / np.linalg.norm(reply.vectors, axis=1, keepdims=True)  # by the engine
    np.testing.assert_allclose(normalized, pair["vectors"], rtol=1e-6)
    assert (reply.tokens, list(reply.truncated)) == (pair["tokens"], pair["truncated"])


@pytest.mark.parametrize("name", REFUSED)
async def test_a_quoted_refusal_of_google_gives_the_right_error(name):
    pair = PAIRS[name]
    known = pair["error"]
    with pytest.raises(errors.ProviderError, match=known["says"]) as caught:
        await exchange(pair)
    assert type(caught.value).__name__ == known["type"]
    assert caught.value.status == pair["reply"]["status"]
    for attribute in known.keys() - {"type", "says"}:
        assert getattr(caught.value, attribute) == known[attribute]
