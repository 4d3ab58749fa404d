"""Provider tests of failures: the right error after the right number of requests, without secrets in messages.

They are skipped unless the suite defines `fail`.
"""

# ruff: noqa: D102 - test names are sentences

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
from embedkit_core.testing.provider_cases import Failure, ProviderCases, numbered_texts

SECRET_WORDS = ("zirconium", "quillwort", "vexillology")  # must not appear in errors or logs
SECRET_TEXTS = [f"The {word} of the town is in order." for word in SECRET_WORDS]


class FailureCases(ProviderCases):
    """Tests of failed requests."""

    def test_a_rejected_key_raises_an_authentication_error_after_one_request(self) -> None:
        self._assert_fails("auth", AuthenticationError)

    def test_an_account_without_credit_raises_a_quota_error_after_one_request(self) -> None:
        self._assert_fails("quota", QuotaError)

    def test_a_rejected_request_raises_a_bad_request_error_after_one_request(self) -> None:
        self._assert_fails("bad_request", BadRequestError)

    def test_a_lasting_rate_limit_is_retried_max_retries_times(self) -> None:
        self._assert_fails("rate_limit", RateLimitError, max_retries=2)

    def test_a_lasting_outage_is_retried_max_retries_times(self) -> None:
        self._assert_fails("unavailable", UnavailableError, max_retries=2)

    def test_a_request_succeeds_after_a_short_outage(self) -> None:
        self.requests_seen()
        expected = self.embedder().embed(SECRET_TEXTS).vectors
        before = self.requests_seen()
        self.fail("unavailable")
        embedder = self.embedder(max_retries=10_000)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(embedder.embed, SECRET_TEXTS)
            while self.requests_seen() < before + 2 and not call.done():  # the second request is a retry
                time.sleep(0.002)
            self.fail(None)
            rows = call.result().vectors
        assert embedder.usage.retries >= 1
        self.assert_same(rows, expected, "a text has another vector after an outage")

    def test_a_rejected_text_fails_alone(self) -> None:
        texts = [*numbered_texts(5), self.bad_text, *numbered_texts(9)[5:]]
        self.fail("bad_text")
        expected = self.embedder().embed(numbered_texts(9)).vectors
        result = self.embedder(on_error="return").embed(texts)
        assert list(result.failed) == [5], (
            f"positions {list(result.failed)} failed instead of [5]. Raise BadTextError for a rejected text."
        )
        assert isinstance(result.failed[5], BadRequestError)
        self.assert_same(
            np.delete(result.vectors, 5, axis=0),
            expected,
            "the other texts of a request with a rejected text have other vectors",
        )

    def test_a_malformed_reply_is_rejected_and_not_cached(self, tmp_path: Path) -> None:
        self._assert_fails("bad_reply", BadReplyError, cache=tmp_path)
        self.fail(None)
        again = self.embedder(cache=tmp_path)
        again.embed(SECRET_TEXTS)
        assert again.usage.cache_hits == 0, "vectors of a malformed reply are in the cache"

    def _assert_fails(
        self, kind: Failure, expected: type[ProviderError], *, max_retries: int = 0, **settings: Path
    ) -> None:
        """Check the error, the number of requests and the messages of a failing call."""
        self.fail(kind)
        before = self.requests_before()
        embedder = self.embedder(max_retries=max_retries, **settings)
        one_request = SECRET_TEXTS[: embedder.provider.limits.texts]
        with captured_logs() as log_lines:
            error = raised_error(embedder.embed, one_request)
        assert isinstance(error, expected), (
            f"fail({kind!r}) raises {type(error).__name__} instead of {expected.__name__}: {error}"
        )
        sent = self.requests_of(embedder, before)
        assert sent == max_retries + 1, (
            f"fail({kind!r}) with max_retries={max_retries} sent {sent} requests instead of {max_retries + 1}. "
            "Turn off the retries of the SDK."
        )
        self._assert_no_secret([*error_messages(error), *log_lines])

    def _assert_no_secret(self, messages: Sequence[str]) -> None:
        secrets = [*SECRET_WORDS, *([self.api_key] if self.api_key else [])]
        for message in messages:
            found = [n for n, secret in enumerate(secrets) if secret in message]
            assert not found, (
                f"an error or log line contains {'the API key' if found[-1] == len(SECRET_WORDS) else 'a text'}. Build "
                "messages from known fields, and raise `from None`: an SDK's exception contains the request."
            )


def raised_error(embed: Callable[[Sequence[str]], object], texts: Sequence[str]) -> Exception:
    """Return the error of a call that must fail."""
    try:
        embed(texts)
    except EmbedKitError as error:
        return error
    raise AssertionError("vectors are returned although the server fails every request")


def error_messages(error: BaseException) -> Iterator[str]:
    """Yield the messages, reprs and attributes of an error and of its causes and contexts."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield from (str(current), repr(current), repr(vars(current)))
            pending += [current.__cause__, current.__context__]


@contextmanager
def captured_logs() -> Iterator[list[str]]:
    """Collect the log lines of all loggers at level INFO and above."""
    log_lines: list[str] = []

    class ListHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log_lines.append(self.format(record))

    root, handler = logging.getLogger(), ListHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield log_lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
