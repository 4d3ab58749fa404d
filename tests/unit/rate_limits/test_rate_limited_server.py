"""A provider that refuses what is over its limit, through the real SDK: scenario 25."""

from collections import Counter

import numpy as np
import pytest
from support.embedders import numbered, openai_embedder, tokens_of
from support.openai_replies import Fault, error
from support.openai_server import Bucket, OpenAIServer, vector_of

from embedkit_core.common.errors import RateLimitError


@pytest.mark.parametrize("silent", [False, True])
def test_a_storm_ends_with_every_vector_and_nothing_is_billed_twice(silent):
    """How long it takes, and how few are refused, is shown by benchmarks/ and, on a virtual clock, by test_pace."""
    texts = numbered(3_000, tokens=20)
    total = sum(map(tokens_of, texts))
    with OpenAIServer(latency=0.02, bucket=Bucket(total / 4, total / 4, silent)) as server:
        result = openai_embedder(server, dimensions=8).embed(texts)
        assert server.billed_texts == Counter(texts)
        refused = sum(exchange.outcome == "refused" for exchange in server.requests)
        assert refused < len(server.requests) / 2
    for place in range(0, len(texts), 97):
        expected = vector_of(texts[place], 8, 1536, "text-embedding-3-small")
        assert np.allclose(result.vectors[place], expected, atol=1e-6)


def test_the_refusal_says_whether_it_was_requests_that_were_too_many():
    told = {"requests per min (RPM): Limit 3": True, "tokens per min (TPM): Limit 40000": False, "RPM or TPM": False}
    for message, requests in told.items():
        with OpenAIServer() as server:
            server.faults.append(Fault(status=429, body=error(f"Rate limit reached on {message}")))
            with pytest.raises(RateLimitError) as caught:
                openai_embedder(server, max_retries=0).embed(["a"])
        assert caught.value.counts_requests is requests
