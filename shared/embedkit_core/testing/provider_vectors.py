"""Cases for providers: whose vector is whose, whatever thread, loop or company it comes in."""

# ruff: noqa: D102 - the name of a case is its sentence

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
from embedkit_core.testing.provider_cases import TEXTS, ProviderCases, alone, numbered

COMPANY = 100  # texts


class VectorCases(ProviderCases):
    """What comes back."""

    def test_a_client_answers_one_request_by_itself(self) -> None:
        """The client alone, on a loop of its own, twice: a client belongs to the loop it was connected on."""
        provider = self.embedder().provider
        texts = TEXTS[: provider.limits.texts]

        async def ask() -> Reply:
            client = provider.connect()
            try:
                return await client.embed(Batch(texts, provider.request_body("document"), timeout=60.0))
            finally:
                await client.aclose()

        replies = [asyncio.run(ask()) for _ in range(2)]
        for reply in replies:
            assert isinstance(reply, Reply), f"embed() returns a {type(reply).__name__}; return Reply(vectors, tokens)"
            assert isinstance(reply.vectors, np.ndarray), "Reply.vectors is no numpy array"
            assert reply.vectors.dtype == np.float32, f"Reply.vectors is {reply.vectors.dtype}; make it float32"
            assert reply.vectors.ndim == 2, f"Reply.vectors has {reply.vectors.ndim} axes; a row for each text is 2"
            assert len(reply.vectors) == len(texts), f"{len(reply.vectors)} rows for {len(texts)} texts"
            billed = reply.tokens
            assert billed is None or (type(billed) is int and billed >= 0), (
                f"Reply.tokens={billed!r}; give the tokens as billed, or None where the provider does not say"
            )
        self.assert_same(replies[0].vectors, replies[1].vectors, "the second connection answers other vectors")

    def test_a_row_is_finite_float32_and_as_wide_as_declared(self) -> None:
        embedder = self.embedder()
        declared = embedder.provider.dimensions
        vectors = embedder.embed(TEXTS).vectors
        assert vectors.dtype == np.float32
        assert np.isfinite(vectors).all(), "a vector holds a number that is not finite"
        assert vectors.shape == (len(TEXTS), embedder.dimensions)
        assert declared in (None, vectors.shape[1]), (
            f"the provider says dimensions={declared}, and vectors have {vectors.shape[1]}; None leaves it to the reply"
        )

    def test_rows_come_in_the_order_of_the_texts(self) -> None:
        embedder = self.embedder()
        rows = embedder.embed(TEXTS).vectors
        turned = embedder.embed([*TEXTS[3:], *TEXTS[:3]]).vectors
        meaning = "a text has another vector where its place is another: rows follow the texts"
        self.assert_same(np.roll(turned, 3, axis=0), rows, meaning)
        self.assert_same(alone(embedder, TEXTS), rows, "a text has another vector alone than in company")

    def test_a_text_has_the_vector_in_a_large_company_that_it_has_in_a_small_one(self) -> None:
        texts = [*numbered(COMPANY), *TEXTS]
        together = self.embedder(max_concurrency=1)  # so that what waits is one request, as far as it may be
        rows = together.embed(texts).vectors
        meaning = "a text has another vector in a request of many texts"
        self.assert_same(rows[-len(TEXTS) :], alone(together, TEXTS), f"{meaning} than alone")
        self.assert_same(rows, self.embedder(max_batch_texts=8).embed(texts).vectors, f"{meaning} than in one of 8")

    def test_rows_come_in_the_order_of_the_texts_over_many_requests(self) -> None:
        texts = numbered(11)
        embedder = self.embedder(max_batch_texts=2)
        rows = embedder.embed(texts).vectors
        assert embedder.usage.requests >= 6
        meaning = "a text has another vector where requests are small, or they are answered out of turn"
        self.assert_same(rows, self.embedder().embed(texts).vectors, meaning)

    def test_different_texts_have_different_vectors(self) -> None:
        vectors = self.embedder().embed(TEXTS).vectors
        for i, row in enumerate(vectors):
            for j in range(i):
                assert self.differ(row, vectors[j]), (
                    f"{TEXTS[i][:30]!r} and {TEXTS[j][:30]!r} have one vector; is the text what is sent?"
                )

    def test_vectors_have_unit_length_where_that_is_declared(self) -> None:
        lengths, is_unit = self._lengths(self.embedder())
        assert is_unit == self.unit_length, f"lengths are {lengths}; declare unit_length = {is_unit}, or normalise"
        if self.unit_length and self.other_dimensions is not None:
            lengths, is_unit = self._lengths(self.embedder(dimensions=self.other_dimensions))
            assert is_unit, (
                f"with dimensions={self.other_dimensions} lengths are {lengths}: normalise what was shortened"
            )

    def _lengths(self, embedder: Embedder) -> tuple[str, bool]:
        lengths = np.linalg.norm(embedder.embed(TEXTS).vectors, axis=1)
        is_unit = bool(np.all(np.abs(lengths - 1) <= max(self.tolerance, 1e-5)))
        return f"{lengths.min():.5f} to {lengths.max():.5f}", is_unit

    def test_the_roles_differ_where_that_is_declared(self) -> None:
        """On the wire, in the key and in the vector alike: a query is served from a document's entry if they agree."""
        embedder, text = self.embedder(), TEXTS[0]
        wires = {role: embedder.provider.request_body(role) for role in ("query", "document")}
        query, document = embedder.embed_query(text), embedder.embed_documents([text])[0]
        on_wire, in_vector = wires["query"] != wires["document"], self.differ(query, document)
        assert on_wire == self.asymmetric, (
            f"the request bodies of query and document {'differ' if on_wire else 'are equal'}: asymmetric = {on_wire}, "
            "or put in the wire what tells them apart"
        )
        assert in_vector == self.asymmetric, (
            "a query has its document's vector although the wire tells them apart: use what the wire says"
            if self.asymmetric
            else "a query has another vector than its document, and their wires are equal: one is served for the other"
        )

    def test_a_query_is_served_from_its_documents_entry_where_the_model_is_symmetric(self, tmp_path: Path) -> None:
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
                f"{seen} requests reached the far end instead of {first.usage.requests}"
            )
        before, second = self.requests_before(), self.embedder(cache=tmp_path)
        assert np.array_equal(second.embed(texts).vectors, rows), (
            "the cache serves other vectors than the first run had"
        )
        assert self.requests_of(second, before) == 0, (
            "a second run sends texts: does request_body() give the same twice?"
        )

    def test_no_bill_is_more_than_a_budget_holds_back(self) -> None:
        for role in get_args(InputType):
            embedder = self.embedder()
            billed = embedder.embed(TEXTS, input_type=role).usage.tokens
            most = sum(max_tokens(text) + embedder.provider.overhead_tokens(role) for text in dict.fromkeys(TEXTS))
            assert billed <= most, (
                f"{billed} tokens were billed for texts of {most} at most: overhead_tokens() is what is added"
            )

    def test_threads_at_once_get_their_own_rows(self) -> None:
        embedder, texts = self.embedder(max_batch_texts=3), numbered(24)
        shares = [texts[i::4] for i in range(4)]
        with ThreadPoolExecutor(len(shares)) as pool:
            answers = list(pool.map(embedder.embed_documents, shares))
        expected = self.embedder().embed(texts).vectors
        for i, rows in enumerate(answers):
            self.assert_same(rows, expected[i::4], "a thread got another vector than its text has alone")

    def test_an_embedder_works_in_one_event_loop_after_another(self) -> None:
        embedder = self.embedder()
        rows = [asyncio.run(embedder.aembed_documents(TEXTS)) for _ in range(2)]
        rows.append(embedder.embed_documents(TEXTS))
        for other in rows[1:]:
            self.assert_same(rows[0], other, "another event loop gets other vectors")

    def test_an_embedder_that_was_closed_works_again(self) -> None:
        embedder = self.embedder()
        rows = []
        for _ in range(2):
            rows.append(embedder.embed(TEXTS).vectors)
            embedder.close()
        self.assert_same(rows[0], rows[1], "after close() the vectors are others")
