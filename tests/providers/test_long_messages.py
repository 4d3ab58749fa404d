"""Error messages of a megabyte: they are searched in their beginning and end, and do not block other requests."""

import json

import pytest
from support.cohere_server import CohereServer
from support.google_server import GoogleServer
from support.openai_replies import Fault
from support.openai_server import OpenAIServer
from support.voyage_server import VoyageServer

from embedkit_core import Embedder, ProviderError, RequestTooLargeError, TextTooLongError

FAMILIES = {
    "openai:m": OpenAIServer,
    "voyage:voyage-4": VoyageServer,
    "cohere:embed-v4.0": CohereServer,
    "google:gemini-embedding-001": GoogleServer,
}
families = pytest.mark.parametrize(("model", "kind"), FAMILIES.items(), ids=[name.split(":")[0] for name in FAMILIES])
TOO_LARGE = "the total tokens are too long: maximum 5 tokens per request, max allowed tokens per batch"


def refused(model, server, message):
    body = json.dumps({"error": {"message": message}, "detail": message, "message": message}).encode()
    server.fault_for(lambda texts, number: Fault(status=400, raw=body))
    Embedder(model, base_url=server.base_url, api_key="test-key", cache=False, max_retries=0).embed(["a"])


@families
@pytest.mark.parametrize("word", ["max", "exceed", "total ", "1", " "])
def test_a_message_that_repeats_a_word_is_searched_at_once(model, kind, word):
    with kind() as server, pytest.raises(ProviderError, match="HTTP 400"):
        refused(model, server, word * (300_000 // len(word)))


@families
@pytest.mark.parametrize("place", ["{0}{1}", "{1}{0}"])
def test_a_reason_at_the_beginning_or_end_of_a_long_message_is_found(model, kind, place):
    with kind() as server, pytest.raises((RequestTooLargeError, TextTooLongError)):
        refused(model, server, place.format(f" {TOO_LARGE} ", "z" * 300_000))
