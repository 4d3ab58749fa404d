"""Recorded or documented requests and replies of Voyage AI, through the real client.

Each file of tests/fixtures/recorded/voyage has a source. Its field `recorded` is "yes" for a reply of the service,
"quoted" for a refusal that somebody quoted (the request is ours), "no" for a reply made from the documentation.
"""

import hashlib

import numpy as np
import pytest
from support.openai_replies import Fault
from support.recorded import recorded
from support.voyage_server import VoyageServer

from embedkit_core import Embedder
from embedkit_core.common import errors
from embedkit_core.common.types import Batch
from embedkit_core.common.vectors import NUMPY_DTYPES
from embedkit_core.providers import Secret
from embedkit_core.providers.base import ProviderSettings
from embedkit_core.providers.voyage import Voyage

PAIRS, ANSWERED, REFUSED = recorded("voyage")


@pytest.fixture
def server():
    with VoyageServer() as started:
        yield started


def answer(server, pair):
    reply = pair["reply"]
    server.fault_for(lambda texts, number: Fault(status=reply["status"], body=reply["body"], headers=reply["headers"]))


def test_there_are_recorded_answers_and_refusals_of_voyage_with_their_sources():
    assert len(ANSWERED) >= 4
    assert len(REFUSED) >= 7
    assert {*ANSWERED, *REFUSED} == {*PAIRS}
    assert all(pair["source"].startswith("https://") and pair["read"] and pair["what"] for pair in PAIRS.values())
    assert {pair["recorded"] for pair in PAIRS.values()} == {"yes", "quoted", "no"}


@pytest.mark.parametrize("name", ANSWERED)
def test_a_recorded_voyage_reply_gives_its_vectors(server, name):
    pair = PAIRS[name]
    asked, dtype = pair["asked"], pair["asked"].get("dtype", "float32")
    answer(server, pair)
    made = Embedder(f"voyage:{asked['model']}", base_url=server.base_url, api_key="test-key", dtype=dtype, cache=False)
    result = made.embed(asked["texts"], input_type=asked["input_type"])
    assert [request.body for request in server.requests] == [pair["request"]]
    assert result.usage.tokens == pair["tokens"]
    assert result.vectors.dtype == NUMPY_DTYPES[dtype]
    for row, known in zip(result.vectors, pair["vectors"], strict=True):
        assert_is(row, known)


def assert_is(row, known):
    """Compare a row with the recorded one: a long one by both ends and a digest."""
    assert len(row) == known["numbers"]
    if "all" in known:
        assert row.tolist() == np.array(known["all"], row.dtype).tolist()
        return
    assert row[: len(known["starts"])].tolist() == np.array(known["starts"], row.dtype).tolist()
    assert row[-len(known["ends"]) :].tolist() == np.array(known["ends"], row.dtype).tolist()
    assert hashlib.sha256(row.astype("<f4").tobytes()).hexdigest() == known["sha256_of_float32"]


@pytest.mark.parametrize("name", [name for name in ANSWERED if "recorded_request" in PAIRS[name]])
def test_the_request_equals_the_recorded_one_except_defaults_and_truncation(name):
    given = {field: value for field, value in PAIRS[name]["recorded_request"].items() if value is not None}
    assert PAIRS[name]["request"] == given | {"truncation": False}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_recorded_voyage_refusal_gives_the_right_error(server, name):
    pair = PAIRS[name]
    asked, known = pair["asked"], pair["error"]
    answer(server, pair)
    provider = Voyage(ProviderSettings(asked["model"], api_key=Secret("test-key"), base_url=server.base_url))
    client = provider.connect()
    with pytest.raises(getattr(errors, known["type"]), match=known["says"]) as caught:
        await client.embed(Batch(asked["texts"], provider.request_body(asked["input_type"]), 60.0))
    await client.aclose()
    assert [request.body for request in server.requests] == [pair["request"]]
    assert type(caught.value).__name__ == known["type"]
    assert (caught.value.status, caught.value.request_id) == (pair["reply"]["status"], f"{1:032x}")
    for attribute in ("limit", "counts_texts"):
        assert getattr(caught.value, attribute, None) == known.get(attribute)
    assert {str(place): length for place, length in getattr(caught.value, "positions", {}).items()} == known.get(
        "positions", {}
    )


async def test_a_recorded_reply_in_another_order_is_sorted_by_index(server):
    pair = PAIRS["documents"]
    reply = {**pair["reply"], "body": {**pair["reply"]["body"], "data": pair["reply"]["body"]["data"][::-1]}}
    answer(server, {"reply": reply})
    made = Embedder("voyage:voyage-3-lite", base_url=server.base_url, api_key="test-key", cache=False)
    for row, known in zip(await made.aembed_documents(pair["asked"]["texts"]), pair["vectors"], strict=True):
        assert_is(row, known)
