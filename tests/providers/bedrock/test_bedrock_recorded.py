"""Documented or quoted requests and replies of Amazon Bedrock, through the real client.

Each file of tests/fixtures/recorded/bedrock has a source. Its field `recorded` is "quoted" for a refusal that somebody
quoted, "no" for a reply made from the documentation. None was recorded.
"""

import json

import numpy as np
import pytest
from support.bedrock_server import BedrockServer
from support.openai_replies import Fault
from support.recorded import recorded

from embedkit_core import Embedder
from embedkit_core.common import errors
from embedkit_core.common.types import Batch
from embedkit_core.common.vectors import NUMPY_DTYPES

PAIRS, ANSWERED, REFUSED = recorded("bedrock")


@pytest.fixture
def server():
    with BedrockServer() as started:
        yield started


def asked_of(server, pair):
    reply, asked = pair["reply"], pair["asked"]
    fault = Fault(status=reply["status"], raw=json.dumps(reply["body"]).encode(), headers=reply["headers"])
    server.fault_for(lambda texts, number: fault)
    server.response_headers = lambda exchange: {}
    return Embedder(
        f"bedrock:{asked['model']}", base_url=server.base_url, api_key="test-key", dtype=asked["dtype"], cache=False
    )


def bodies(server):
    return [{name: value for name, value in request.body.items() if name != "modelId"} for request in server.requests]


def test_there_are_golden_replies_and_refusals_of_every_family_with_their_sources():
    assert (len(ANSWERED), len(REFUSED)) == (6, 9)
    assert {*ANSWERED, *REFUSED} == {*PAIRS}
    assert all(pair["source"].startswith("https://") and pair["read"] and pair["what"] for pair in PAIRS.values())
    assert {pair["recorded"] for pair in PAIRS.values()} == {"quoted", "no"}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_golden_reply_gives_its_vectors(server, name):
    pair = PAIRS[name]
    asked = pair["asked"]
    result = asked_of(server, pair).embed(asked["texts"], input_type=asked["input_type"])
    assert bodies(server) == [pair["request"]]
    assert result.usage.tokens == pair["tokens"]
    rows = np.array(pair["vectors"], dtype=NUMPY_DTYPES[asked["dtype"]])
    if pair["unit"]:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert result.vectors.dtype == NUMPY_DTYPES[asked["dtype"]]
    np.testing.assert_allclose(result.vectors, rows, rtol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
async def test_a_quoted_refusal_gives_the_right_error(server, name):
    pair = PAIRS[name]
    asked, known = pair["asked"], pair["error"]
    provider = asked_of(server, pair).provider
    client = provider.connect()
    with pytest.raises(getattr(errors, known["type"]), match=known["says"]) as caught:
        await client.embed(Batch(asked["texts"], provider.request_body(asked["input_type"]), 60.0))
    await client.aclose()
    assert bodies(server) == [pair["request"]]
    assert type(caught.value).__name__ == known["type"]
    assert caught.value.status == pair["reply"]["status"]
    for attribute in ("limit", "tokens"):
        assert getattr(caught.value, attribute, None) == known.get(attribute)
    if known["type"] == "TextTooLongError":
        assert caught.value.unit == known.get("unit", "tokens")
        assert {str(place): length for place, length in caught.value.positions.items()} == known.get("positions", {})
