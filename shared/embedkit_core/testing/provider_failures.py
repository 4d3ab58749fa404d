"""Cases for providers: a refusal is the right error after the right number of requests, and says no secret.

They need `fail`, which makes the far end fail; without it they are skipped.
"""

# ruff: noqa: D102 - the name of a case is its sentence

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    EmbedKitError,
    ProviderError,
    QuotaError,
    RateLimitError,
    UnavailableError,
)
from embedkit_core.testing.provider_cases import Failure, ProviderCases, numbered

WORDS = ("zirconium", "quillwort", "vexillology")  # of a text that nothing may repeat
SECRET_TEXTS = [f"The {word} of the house is in order." for word in WORDS]


class FailureCases(ProviderCases):
    """What goes wrong."""

    def test_a_key_that_is_refused_is_an_authentication_error_after_one_request(self) -> None:
        self._refused("auth", AuthenticationError)

    def test_an_account_without_credit_is_a_quota_error_after_one_request(self) -> None:
        self._refused("quota", QuotaError)

    def test_a_request_that_is_refused_is_a_bad_request_error_after_one_request(self) -> None:
        self._refused("bad_request", BadRequestError)

    def test_a_lasting_rate_limit_is_tried_max_retries_and_once_more(self) -> None:
        self._refused("rate_limit", RateLimitError, max_retries=2)

    def test_a_lasting_outage_is_tried_max_retries_and_once_more(self) -> None:
        self._refused("unavailable", UnavailableError, max_retries=2)

    def test_a_passing_outage_is_retried_and_answered(self) -> None:
        self.requests_seen()
        expected = self.embedder().embed(SECRET_TEXTS).vectors
        before = self.requests_seen()
        self.fail("unavailable")
        embedder = self.embedder(max_retries=10_000)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(embedder.embed, SECRET_TEXTS)
            while self.requests_seen() < before + 2 and not asked.done():  # the second follows a failure of the first
                time.sleep(0.002)
            self.fail(None)
            rows = asked.result().vectors
        assert embedder.usage.retries >= 1
        self.assert_same(rows, expected, "after an outage a text has another vector")

    def test_a_text_that_is_refused_fails_alone(self) -> None:
        texts = [*numbered(5), self.bad_text, *numbered(9)[5:]]
        self.fail("bad_text")
        expected = self.embedder().embed(numbered(9)).vectors
        result = self.embedder(on_error="return").embed(texts)
        assert list(result.failed) == [5], (
            f"positions {list(result.failed)} failed instead of 5: is a refused text a BadTextError?"
        )
        assert isinstance(result.failed[5], BadRequestError)
        self.assert_same(np.delete(result.vectors, 5, axis=0), expected, "the neighbours of a refused text are others")

    def test_a_reply_that_does_not_fit_is_refused_and_not_kept(self, tmp_path: Path) -> None:
        self._refused("bad_reply", BadReplyError, cache=tmp_path)
        self.fail(None)
        again = self.embedder(cache=tmp_path)
        again.embed(SECRET_TEXTS)
        assert again.usage.cache_hits == 0, "rows of a reply that does not fit are in the cache"

    def _refused(self, kind: Failure, expected: type[ProviderError], *, max_retries: int = 0, **settings: Path) -> None:
        """Ask in vain, and look at the error, what was sent, and what was said."""
        self.fail(kind)
        before = self.requests_before()
        embedder = self.embedder(max_retries=max_retries, **settings)
        with listening() as heard:
            error = failure_of(embedder.embed, SECRET_TEXTS)
        assert isinstance(error, expected), (
            f"fail({kind!r}) is raised as {type(error).__name__} instead of {expected.__name__}: {error}"
        )
        sent = self.requests_of(embedder, before)
        assert sent == max_retries + 1, (
            f"fail({kind!r}) with max_retries={max_retries} sent {sent} requests instead of {max_retries + 1}: "
            "switch the retries of the SDK off"
        )
        self._assert_discreet([*spoken(error), *heard])

    def _assert_discreet(self, said: Sequence[str]) -> None:
        secrets = [*WORDS, *([self.api_key] if self.api_key else [])]
        for one in said:
            told = [n for n, secret in enumerate(secrets) if secret in one]
            assert not told, (
                f"an error or a log line repeats {'the key' if told[-1] == len(WORDS) else 'a text'}: build messages "
                "from known fields, and raise `from None`, since an SDK's exception holds the request"
            )


def failure_of(embed: Callable[[Sequence[str]], object], texts: Sequence[str]) -> Exception:
    """Give the error that embedding raises."""
    try:
        embed(texts)
    except EmbedKitError as error:
        return error
    raise AssertionError("the far end refuses every request, and vectors are returned")


def spoken(error: BaseException) -> Iterator[str]:
    """Give all that an error and those behind it say."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield from (str(one), repr(one), repr(vars(one)))
            waiting += [one.__cause__, one.__context__]


@contextmanager
def listening() -> Iterator[list[str]]:
    """Give the log lines of INFO and above, of everybody, as they come."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(self.format(record))

    root, ear = logging.getLogger(), Ear()
    level = root.level
    root.addHandler(ear)
    root.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        root.setLevel(level)
        root.removeHandler(ear)
