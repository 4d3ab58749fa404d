"""Long texts at a provider that truncates on request: first refused, so that truncated texts are known."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import fake_embedder
from support.waiting import wait_until_joined

from embedkit_core import PartialFailureError, TextTooLongError, UnavailableError
from embedkit_core.common.types import Limits
from embedkit_core.testing import FakeServer, ProviderSuite, fake_vector

WORDS = 5  # per text, accepted by the server
lengths = st.lists(st.integers(1, 12), min_size=1, max_size=40)


class TestFakeThatCuts(ProviderSuite):
    model = "fake:model"
    asymmetric = True
    other_dimensions = 5

    @pytest.fixture(autouse=True)
    def far_end(self):
        self.server = FakeServer(cuts=True, max_words=4000)

    @property
    def settings(self):
        return {"base_url": self.server.url}


def texts_of(counts):
    return [" ".join(f"w{n}x{i}" for i in range(count)) for n, count in enumerate(counts)]


def truncated(text):
    return " ".join(text.split()[:WORDS])


def expected_vectors(texts, role="document"):
    return np.stack([fake_vector(truncated(text), role=role, model="model") for text in texts])


@settings(deadline=None, max_examples=60)
@given(lengths, st.integers(1, 16), st.sampled_from(["document", "query"]))
def test_every_row_is_that_of_the_text_or_its_truncation_and_truncated_texts_are_listed(counts, texts_a_request, role):
    server = FakeServer(cuts=True, max_words=WORDS)
    texts = texts_of(counts)
    result = fake_embedder(server, max_batch_texts=texts_a_request).embed(texts, input_type=role)
    assert np.array_equal(result.vectors, expected_vectors(texts, role))
    assert result.truncated == tuple(n for n, count in enumerate(counts) if count > WORDS)
    assert set(server.billed.values()) == {1}
    assert all(len(seen.texts) <= texts_a_request for seen in server.received)


@settings(deadline=None, max_examples=40)
@given(lengths)
def test_a_text_far_over_a_known_limit_is_truncated_without_a_refusal(counts):
    server = FakeServer(cuts=True, max_words=WORDS, limits=Limits(text_tokens=WORDS))
    texts = texts_of(counts)
    result = fake_embedder(server).embed(texts)
    assert np.array_equal(result.vectors, expected_vectors(texts))
    assert set(result.truncated) >= {n for n, count in enumerate(counts) if count > WORDS}
    assert set(server.billed.values()) == {1}


def test_truncated_texts_share_requests():
    server = FakeServer(cuts=True, max_words=WORDS, limits=Limits(text_tokens=WORDS))
    texts = texts_of([30] * 40)
    assert fake_embedder(server).embed(texts).truncated == tuple(range(40))
    assert len(server.received) <= 3
    assert all(seen.body["cut"] for seen in server.received)


@pytest.mark.parametrize("policy", ["error", "mean"])
def test_other_policies_never_request_truncation(policy):
    server = FakeServer(cuts=True, max_words=WORDS, limits=Limits(text_tokens=WORDS))
    result = fake_embedder(server, on_long_text=policy, on_error="return").embed(texts_of([2, 30]))
    assert not any(seen.body["cut"] for seen in server.received)
    assert result.truncated == ()
    assert isinstance(result.failed.get(1), TextTooLongError if policy == "error" else type(None))


def test_callers_with_two_policies_get_their_own_results():
    server = FakeServer(cuts=True, max_words=WORDS)
    text = texts_of([9])
    assert np.array_equal(fake_embedder(server).embed(text).vectors, expected_vectors(text))
    with pytest.raises(TextTooLongError):
        fake_embedder(server, on_long_text="error").embed(text)
    assert (
        fake_embedder(server).explain(text[0]).key != fake_embedder(server, on_long_text="error").explain(text[0]).key
    )


def test_a_failed_truncating_request_is_retried_and_then_raised():
    server = FakeServer(cuts=True, max_words=WORDS)

    def fault(texts):
        alone = len(texts) == 1 and len(texts[0].split()) > WORDS
        return UnavailableError("down", retry_after=0.0) if alone else None

    server.fault_for = fault
    with pytest.raises(PartialFailureError) as caught:
        fake_embedder(server, max_retries=2).embed(texts_of([2, 9]))
    assert list(caught.value.failed) == [1]
    assert sum(seen.body["cut"] for seen in server.received) == 3


def test_a_truncated_text_is_cached_and_listed_again(tmp_path):
    server = FakeServer(cuts=True, max_words=WORDS)
    texts = texts_of([2, 9])
    first, again = (fake_embedder(server, cache=tmp_path).embed(texts) for _ in range(2))
    assert (first.truncated, again.truncated) == ((1,), (1,))
    assert again.usage.requests == 0


async def test_many_callers_of_one_long_text_share_its_requests():
    server = FakeServer(cuts=True, max_words=WORDS)
    server.hold()
    embedder = fake_embedder(server)
    asked = asyncio.gather(*(embedder.aembed_query(texts_of([9])[0]) for _ in range(20)))
    await asyncio.to_thread(wait_until_joined, embedder, 20)
    server.release()
    rows = await asked
    assert len(server.received) == 2
    assert all(np.array_equal(row, rows[0]) for row in rows)


def test_a_stream_continues_after_a_truncated_text():
    server = FakeServer(cuts=True, max_words=WORDS)
    texts = texts_of([2, 9, 3] * 20)
    assert np.array_equal(np.stack(list(fake_embedder(server).embed_iter(texts))), expected_vectors(texts))


def test_a_cancelled_caller_of_long_texts_leaves_nothing_behind():
    server = FakeServer(cuts=True, max_words=WORDS, latency=0.01)
    embedder = fake_embedder(server)

    async def leave():
        task = asyncio.create_task(embedder.aembed(texts_of([9] * 30)))
        await asyncio.to_thread(server.wait_for_requests, 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert np.array_equal(embedder.embed(texts_of([3])).vectors, expected_vectors(texts_of([3])))
