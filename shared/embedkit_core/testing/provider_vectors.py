"""Provider tests of vectors: each text gets its own vector in every batch, thread and event loop."""

# ruff: noqa: D102 - test names are sentences

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np

from embedkit_core.common.types import InputType
from embedkit_core.costs.tokens import max_tokens
from embedkit_core.embedder import Embedder
from embedkit_core.providers import Batch, Reply
from embedkit_core.testing.provider_cases import TEXTS, ProviderCases, embed_one_by_one, numbered_texts

LARGE_BATCH_TEXTS = 100


class VectorCases(ProviderCases):
    """Tests of returned vectors."""

    def test_a_client_answers_a_single_request(self) -> None:
        """Calls the client directly, twice on new event loops: a client is bound to the loop of connect()."""
        provider = self.embedder().provider
        texts = TEXTS[: provider.limits.texts]

        async def send() -> Reply:
            client = provider.connect()
            try:
                return await client.embed(Batch(texts, provider.request_body("document"), timeout=60.0))
            finally:
                await client.aclose()

        replies = [asyncio.run(send()) for _ in range(2)]
        for reply in replies:
            assert isinstance(reply, Reply), f"embed() returns a {type(reply).__name__}. Return Reply(vectors, tokens)."
            assert isinstance(reply.vectors, np.ndarray), "Reply.vectors is not a numpy array"
            assert reply.vectors.dtype == np.float32, f"Reply.vectors is {reply.vectors.dtype}. Return float32."
            assert reply.vectors.ndim == 2, (
                f"Reply.vectors has {reply.vectors.ndim} axes. Return a matrix with one row per text."
            )
            assert len(reply.vectors) == len(texts), f"{len(reply.vectors)} rows for {len(texts)} texts"
            billed = reply.tokens
            assert billed is None or (type(billed) is int and billed >= 0), (
                f"Reply.tokens is {billed!r}. Return the billed tokens, or None if the server does not report them."
            )
        self.assert_same(replies[0].vectors, replies[1].vectors, "the second connection returns other vectors")

    def test_rows_are_finite_float32_of_the_declared_width(self) -> None:
        embedder = self.embedder()
        declared = embedder.provider.dimensions
        vectors = embedder.embed(TEXTS).vectors
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all(), "a vector contains a number that is not finite"
        assert vectors.shape == (len(TEXTS), embedder.dimensions)
        assert declared in (None, vectors.shape[1]), (
            f"the provider declares dimensions={declared}, but vectors have {vectors.shape[1]}. Declare None if "
            "they are unknown."
        )

    def test_rows_are_in_the_order_of_the_texts(self) -> None:
        embedder = self.embedder()
        rows = embedder.embed(TEXTS).vectors
        rotated = embedder.embed([*TEXTS[3:], *TEXTS[:3]]).vectors
        meaning = "a text has another vector at another position. Rows must be in the order of the texts."
        self.assert_same(np.roll(rotated, 3, axis=0), rows, meaning)
        self.assert_same(embed_one_by_one(embedder, TEXTS), rows, "a text has another vector alone than in a batch")

    def test_a_text_has_the_same_vector_in_a_small_and_a_large_batch(self) -> None:
        texts = [*numbered_texts(LARGE_BATCH_TEXTS), *TEXTS]
        embedder = self.embedder(max_concurrency=1)  # packs texts into as few requests as possible
        rows = embedder.embed(texts).vectors
        meaning = "a text has another vector in a large batch"
        self.assert_same(rows[-len(TEXTS) :], embed_one_by_one(embedder, TEXTS), f"{meaning} than alone")
        self.assert_same(rows, self.embedder(max_batch_texts=8).embed(texts).vectors, f"{meaning} than in a batch of 8")

    def test_rows_are_in_the_order_of_the_texts_across_requests(self) -> None:
        texts = numbered_texts(11)
        embedder = self.embedder(max_batch_texts=2)
        rows = embedder.embed(texts).vectors
        assert embedder.usage.requests >= 6
        meaning = "a text has another vector if its batch is small or replies arrive out of order"
        self.assert_same(rows, self.embedder().embed(texts).vectors, meaning)

    def test_different_texts_have_different_vectors(self) -> None:
        vectors = self.embedder().embed(TEXTS).vectors
        for i, row in enumerate(vectors):
            for j in range(i):
                assert self.differ(row, vectors[j]), (
                    f"{TEXTS[i][:30]!r} and {TEXTS[j][:30]!r} have the same vector. Check that the text is sent."
                )

    def test_vectors_have_unit_length_if_declared(self) -> None:
        lengths, is_unit = self._lengths(self.embedder())
        assert is_unit == self.unit_length, f"lengths are {lengths}. Set unit_length = {is_unit}, or normalize vectors."
        if self.unit_length and self.other_dimensions is not None:
            lengths, is_unit = self._lengths(self.embedder(dimensions=self.other_dimensions))
            assert is_unit, (
                f"with dimensions={self.other_dimensions} lengths are {lengths}. Normalize truncated vectors."
            )

    def _lengths(self, embedder: Embedder) -> tuple[str, bool]:
        lengths = np.linalg.norm(embedder.embed(TEXTS).vectors, axis=1)
        is_unit = bool(np.all(np.abs(lengths - 1) <= max(self.tolerance, 1e-5)))
        return f"{lengths.min():.5f} to {lengths.max():.5f}", is_unit

    def test_queries_and_documents_differ_if_declared(self) -> None:
        """Request body and vector must agree: with equal bodies, a query reuses the cached vector of a document."""
        embedder, text = self.embedder(), TEXTS[0]
        bodies = {input_type: embedder.provider.request_body(input_type) for input_type in get_args(InputType)}
        query, document = embedder.embed_query(text), embedder.embed_documents([text])[0]
        in_body, in_vector = bodies["query"] != bodies["document"], self.differ(query, document)
        assert in_body == self.asymmetric, (
            f"the request bodies of query and document {'differ' if in_body else 'are equal'}. Set asymmetric = "
            f"{in_body}, or put the input type into request_body()."
        )
        assert in_vector == self.asymmetric, (
            "query and document have the same vector although their request bodies differ. Use the request body."
            if self.asymmetric
            else "query and document have different vectors but equal request bodies, so they would share a cache key"
        )

    def test_only_with_a_symmetric_model_a_query_reuses_a_cached_document(self, tmp_path: Path) -> None:
        first = self.embedder(cache=tmp_path)
        document = first.embed_documents([TEXTS[0]])[0]
        second = self.embedder(cache=tmp_path)
        query = second.embed_query(TEXTS[0])
        assert (second.usage.cache_hits == 0) == self.asymmetric
        assert np.array_equal(query, document) != self.asymmetric

    def test_a_text_is_sent_once_and_a_second_run_sends_nothing(self, tmp_path: Path) -> None:
        texts, before = [*TEXTS, *TEXTS], self.requests_before()
        first = self.embedder(cache=tmp_path)
        rows = first.embed(texts).vectors
        assert (first.usage.sent, first.usage.duplicates) == (len(TEXTS), len(TEXTS))
        assert np.array_equal(rows[: len(TEXTS)], rows[len(TEXTS) :])
        if before is not None:
            seen = self.requests_seen() - before
            assert seen == first.usage.requests, (
                f"the server received {seen} requests instead of {first.usage.requests}"
            )
        before, second = self.requests_before(), self.embedder(cache=tmp_path)
        assert np.array_equal(second.embed(texts).vectors, rows), "the cache returns other vectors than the first run"
        assert self.requests_of(second, before) == 0, (
            "a second run sends texts. Check that request_body() returns equal values."
        )

    def test_billed_tokens_do_not_exceed_the_budget_reservation(self) -> None:
        for input_type in get_args(InputType):
            embedder = self.embedder()
            billed = embedder.embed(TEXTS, input_type=input_type).usage.tokens
            reserved = sum(
                max_tokens(text) + embedder.provider.overhead_tokens(input_type) for text in dict.fromkeys(TEXTS)
            )
            assert billed <= reserved, (
                f"{billed} tokens were billed, but at most {reserved} were reserved. Return the added tokens by "
                "overhead_tokens()."
            )

    def test_concurrent_threads_get_their_own_rows(self) -> None:
        embedder, texts = self.embedder(max_batch_texts=3), numbered_texts(24)
        shares = [texts[i::4] for i in range(4)]
        with ThreadPoolExecutor(len(shares)) as pool:
            results = list(pool.map(embedder.embed_documents, shares))
        expected = self.embedder().embed(texts).vectors
        for i, rows in enumerate(results):
            self.assert_same(rows, expected[i::4], "a thread gets the vector of another text")

    def test_an_embedder_works_in_several_event_loops(self) -> None:
        embedder = self.embedder()
        rows = [asyncio.run(embedder.aembed_documents(TEXTS)) for _ in range(2)]
        rows.append(embedder.embed_documents(TEXTS))
        for other in rows[1:]:
            self.assert_same(rows[0], other, "another event loop gets other vectors")

    def test_a_closed_embedder_works_again(self) -> None:
        embedder = self.embedder()
        rows = []
        for _ in range(2):
            rows.append(embedder.embed(TEXTS).vectors)
            embedder.close()
        self.assert_same(rows[0], rows[1], "vectors differ after close()")
