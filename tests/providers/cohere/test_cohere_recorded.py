"""Recorded or documented requests and replies of Cohere, through the real client.

Each file of tests/fixtures/recorded/cohere has a source. Its field `recorded` is "yes" for a reply of the service,
"quoted" for a refusal that somebody quoted, "no" for a reply made from the documentation.
"""

import json

import numpy as np
import pytest
from support.cohere_server import CohereServer
from support.openai_replies import Fault
from support.recorded import recorded

from embedkit_core import Embedder
from embedkit_core.common import errors
from embedkit_core.common.types import Batch
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.providers import Secret
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.cohere import Cohere

PAIRS, ANSWERED, REFUSED = recorded("cohere")


@pytest.fixture
def server():
    with CohereServer() as started:
        yield started


def answer(server, pair):
    status, body = pair["reply"]["status"], pair["reply"]["body"]
    if status == 200:
        server.fault_for(lambda texts, number: Fault(raw=json.dumps(body).encode()))
    else:
        server.fault_for(lambda texts, number: Fault(status=status, body=body))


def test_there_are_recorded_answers_and_refusals_of_cohere_with_their_sources():
    assert (len(ANSWERED), len(REFUSED)) == (6, 8)
    assert {*ANSWERED, *REFUSED} == {*PAIRS}
    assert all(pair["source"].startswith("https://") and pair["read"] and pair["what"] for pair in PAIRS.values())
    assert {pair["recorded"] for pair in PAIRS.values()} == {"yes", "quoted", "no"}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_recorded_cohere_reply_gives_its_vectors(server, name):
    pair = PAIRS[name]
    asked = pair["asked"]
    answer(server, pair)
    made = Embedder(
        f"cohere:{asked['model']}", base_url=server.base_url, api_key="test-key", dtype=asked["dtype"], cache=False
    )
    result = made.embed(asked["texts"], input_type=asked["input_type"])
    assert [request.body for request in server.requests] == [pair["request"]]
    assert result.usage.tokens == pair["tokens"]
    rows = np.array(pair["vectors"], dtype=NUMPY_DTYPES[asked["dtype"]])
    if pair["unit"]:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert result.vectors.dtype == NUMPY_DTYPES[asked["dtype"]]
    np.testing.assert_allclose(result.vectors, rows, rtol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
async def test_a_recorded_cohere_refusal_gives_the_right_error(server, name):
    pair = PAIRS[name]
    asked, known = pair["asked"], pair["error"]
    answer(server, pair)
    provider = Cohere(ProviderSettings(asked["model"], api_key=Secret("test-key"), base_url=server.base_url))
    client = provider.connect()
    with pytest.raises(getattr(errors, known["type"]), match=known["says"]) as caught:
        await client.embed(Batch(asked["texts"], provider.request_body(asked["input_type"]), 60.0))
    await client.aclose()
    assert [request.body for request in server.requests] == [pair["request"]]
    assert type(caught.value).__name__ == known["type"]
    assert caught.value.status == pair["reply"]["status"]
    for attribute in ("limit", "tokens", "counts_texts"):
        assert getattr(caught.value, attribute, None) == known.get(attribute)
