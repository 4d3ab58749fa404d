"""Exception classes of the library.

EmbedKitError
+- ConfigurationError (ValueError)     invalid settings; raised before any I/O
|  +- MissingExtraError (ImportError)  an optional dependency is not installed
+- InputError (ValueError)             texts that cannot be embedded; raised before any request is sent
+- BudgetError                         a budget has no room for a text
+- CacheError                          the cache failed; calls log it and treat the texts as cache misses
+- PartialFailureError                 some texts failed, others succeeded
+- ProviderError                       a request failed
   +- AuthenticationError              401, 403
   +- BadRequestError                  400, 404, 422
   |  +- BadTextError                  400 that a text may have caused; the engine isolates the text
   |  +- TextTooLongError              a text is over the model's limit
   |  +- RequestTooLargeError          too many texts or tokens in one request; the engine halves it and retries
   |  +- EncodingRefusedError          the server does not support base64; the client retries with floats
   +- QuotaError                       402, insufficient_quota
   +- RateLimitError*                  429
   +- UnavailableError*                5xx, connection lost
   +- TimedOutError*                   no reply within timeout=, or the deadline= of a call passed
   +- BadReplyError                    wrong count, shape, order, or a non-finite number; never cached

* retryable. Messages name the setting, its value and the fix. They never contain an API key or a text.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from embedkit_core.common.results import EmbeddingResult
    from embedkit_core.common.types import RateLimitStatus
    from embedkit_core.common.usage import Usage


def _rebuild(cls: type[EmbedKitError], args: tuple[object, ...], state: dict[str, object]) -> EmbedKitError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class EmbedKitError(Exception):
    """Base class of all errors that the library raises on purpose. Supports copy and pickle.

    Attributes:
        usage: Usage of the call that failed, which may have sent billed requests. None if the call did not start.
    """

    usage: Usage | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def safe_reason(error: BaseException) -> str:
    """Return the message of an error of this library; of another one only its type: its message may hold secrets."""
    return str(error) if isinstance(error, EmbedKitError) else type(error).__name__


class ConfigurationError(EmbedKitError, ValueError):
    """Invalid settings; raised before any I/O."""


class MissingExtraError(ConfigurationError, ImportError):
    """A package that an optional feature needs is not installed.

    Attributes:
        extra: The extra of rag-embedkit that installs the package, for example "local".
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f'{feature} needs the extra [{extra}], which is not installed. Run: pip install "rag-embedkit[{extra}]"'
        )
        self.extra = extra


class InputError(EmbedKitError, ValueError):
    """Some texts cannot be embedded, for example because they are empty. No request was sent.

    Attributes:
        indices: Positions of these texts in the input.
    """

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = tuple(indices)


class BudgetError(EmbedKitError):
    """A budget has no room for the texts that are left; no request that could exceed the budget was sent.

    Finished texts are in `result` and in the cache.

    Attributes:
        limit_usd: Budget in USD. None if there is no limit in USD.
        spent_usd: USD that were billed or possibly billed.
        needed_usd: Upper bound for the texts that are left. None if the price is unknown.
        limit_tokens: Budget in tokens. None if there is no limit in tokens.
        spent_tokens: Tokens that were billed or possibly billed.
        needed_tokens: Upper bound for the texts that are left.
        usd_per_million: Price of the model in USD per million tokens. None if it is unknown.
        budget_name: Name of the budget, whose amounts are sums over all processes that share it. None without a name.
        failed: Error of each text without a vector, by position.
        succeeded: Positions of the finished texts.
        result: Vectors and usage of the call. None if the call did not start.
    """

    def __init__(
        self,
        message: str,
        *,
        limit_usd: Decimal | None = None,
        spent_usd: Decimal | None = None,
        needed_usd: Decimal | None = None,
        limit_tokens: int | None = None,
        spent_tokens: int | None = None,
        needed_tokens: int | None = None,
        usd_per_million: Decimal | None = None,
        budget_name: str | None = None,
        failed: Mapping[int, EmbedKitError] | None = None,
        succeeded: Sequence[int] = (),
        result: EmbeddingResult | None = None,
    ) -> None:
        super().__init__(message)
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.needed_usd = needed_usd
        self.limit_tokens = limit_tokens
        self.spent_tokens = spent_tokens
        self.needed_tokens = needed_tokens
        self.usd_per_million = usd_per_million
        self.budget_name = budget_name
        self.failed: dict[int, EmbedKitError] = dict(failed or {})
        self.succeeded: Sequence[int] = succeeded if isinstance(succeeded, range) else tuple(succeeded)
        self.result = result


class CoordinationError(EmbedKitError):
    """The coordinator of several processes cannot be reached. Embedding calls continue without it.

    Attributes:
        is_logged: True if the log has the failure and its consequences already.
    """

    is_logged: bool = False


class CacheError(EmbedKitError):
    """The cache could not be read or written. Embedding calls continue without it."""


class JobError(EmbedKitError):
    """A batch job cannot go on, or its texts cannot be embedded because they are in the job.

    Attributes:
        job_id: The job. None if there is none.
        is_busy: True if another process or thread is working on the job.
    """

    is_busy = False

    def __init__(self, message: str, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class PartialFailureError(EmbedKitError):
    """Some texts failed and others succeeded. Finished texts are in `result` and in the cache.

    A stream raises it at the first text that fails. Then `failed` has this text only, `succeeded` has all texts before
    it, and `result` has no rows because the stream has yielded them. Positions count from the start of the stream.

    Attributes:
        failed: Error of each failed text, by position.
        succeeded: Positions of the finished texts.
        result: Vectors and usage of the call; the rows of failed texts are NaN, or 0 in an integer dtype.
    """

    def __init__(
        self, message: str, *, failed: Mapping[int, EmbedKitError], succeeded: Sequence[int], result: EmbeddingResult
    ) -> None:
        super().__init__(message)
        self.failed = dict(failed)
        self.succeeded: Sequence[int] = succeeded if isinstance(succeeded, range) else tuple(succeeded)
        self.result = result


class ProviderError(EmbedKitError):
    """A request failed. If all texts of a call failed, the call raises the error of the first one.

    Attributes:
        provider: Name of the provider.
        model: The model as "provider:model".
        status: HTTP status of the response. None if there was no response.
        request_id: The provider's ID of the request, for its support. None if the response has none.
        retry_after: Seconds until the provider accepts a retry. None if the response does not state it.
        rate_limits: Remaining rate limits according to the response. None if it does not state them.
        retryable: True if a retry of the same request may succeed.
        unsent: True if the request did not reach the provider, so it was certainly not billed.
        retries: How often the text was sent again before this final error.
        retry_seconds: Seconds from sending it first to its last temporary failure.
    """

    retryable = False
    retries = 0
    retry_seconds = 0.0
    unsent = False
    rate_limits: RateLimitStatus | None = None

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.model = model
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after

    def after_retries(self, retries: int, seconds: float, server: str) -> Self:
        """Return a copy for one text, with the retries of the text in its message and attributes."""
        error = copy.copy(self)
        if retries:
            error.retries, error.retry_seconds = retries, seconds
            message, period = str(self).removesuffix("."), "." * str(self).endswith(".")
            times = f"{retries} {'retry' if retries == 1 else 'retries'}"
            error.args = (f"{message} (after {times} in {seconds:.1f} s, at {server}){period}",)
        return error


class AuthenticationError(ProviderError):
    """The API key is missing, wrong, or has no access to the model."""


class BadRequestError(ProviderError):
    """The provider rejected the request; a retry of the same request fails again."""


class BadTextError(BadRequestError):
    """The provider rejected a request, possibly because of one of its texts.

    Attributes:
        text_is_cause: True if the provider accepted other texts with the same settings. False if it has accepted none,
            so that the model, the key or a setting may be the cause too.
    """

    text_is_cause = False

    def for_request(self) -> BadRequestError:
        """Return the error for a request that is rejected with different texts."""
        return BadRequestError(
            f"{str(self).rstrip('.')}. Different texts were refused alike: check the model, api_key= and "
            "provider_options= first.",
            provider=self.provider,
            model=self.model,
            status=self.status,
            request_id=self.request_id,
        )


class TextTooLongError(BadRequestError):
    """A text is longer than the model's limit.

    Attributes:
        tokens: Length of the text in tokens as the provider counted it. None if it does not state it.
        limit: The model's limit in tokens. None if the provider does not state it.
        positions: Set by a provider for the engine: position in the request of each text that is too long, with its
            length in tokens or None. Empty if the provider does not state which texts are too long.
        unit: What `tokens`, `limit` and `positions` count: "tokens", or "characters" if the limit is on these.
    """

    def __init__(
        self,
        *,
        tokens: int | None = None,
        limit: int | None = None,
        positions: Mapping[int, int | None] | None = None,
        unit: str = "tokens",
        provider: str = "",
        model: str = "",
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        known = tokens is not None and limit is not None
        problem = f"has {tokens} {unit}, over the limit of {limit}" if known else "is longer than the model's limit"
        super().__init__(
            f"A text {problem}. Set on_long_text='truncate' or 'mean' to embed it.",
            provider=provider,
            model=model,
            status=status,
            request_id=request_id,
        )
        self.tokens = tokens
        self.limit = limit
        self.positions = dict(positions or {})
        self.unit = unit

    def for_text(self, tokens: int | None) -> TextTooLongError:
        """Return the same error for a single text of this length in tokens, None if the length is unknown."""
        return TextTooLongError(
            tokens=tokens,
            limit=self.limit,
            unit=self.unit,
            provider=self.provider,
            model=self.model,
            status=self.status,
            request_id=self.request_id,
        )


class RequestTooLargeError(BadRequestError):
    """A request has more texts, tokens or bytes than the provider accepts.

    Attributes:
        counts_texts: True if the number of texts is over the limit, False if it is the tokens or bytes.
    """

    counts_texts = False


class EncodingRefusedError(BadRequestError):
    """The server does not support the requested encoding of vectors. The client uses floats from then on.

    Attributes:
        is_reply: True if the server sent a reply that cannot be decoded, and no refusal. It may have been billed.
        tokens: Billed tokens of that reply. None if unknown.
    """

    is_reply = False
    tokens: int | None = None


class QuotaError(ProviderError):
    """The account has no credit left; a later retry does not help."""


class RateLimitError(ProviderError):
    """Too many requests or tokens: per minute, or at the same time.

    Attributes:
        counts_requests: True if the limit on requests was hit, not the one on tokens.
    """

    retryable = True
    counts_requests = False


class UnavailableError(ProviderError):
    """The provider is overloaded, fails or cannot be reached."""

    retryable = True


class FileNotReadyError(UnavailableError):
    """The provider does not know an uploaded file yet, so it created no batch from it."""

    unsent = True


class BatchNotFoundError(ProviderError):
    """The provider does not know a batch, or has deleted its results."""


class TimedOutError(ProviderError):
    """No reply arrived in time, or the deadline of a call passed. The request may have been billed."""

    retryable = True


class BadReplyError(ProviderError):
    """The reply does not match the request: wrong count, order or width, or a non-finite number.

    Attributes:
        tokens: Billed tokens of the reply. None if unknown.
        lasts: True if the reply to any other text would be wrong too, as with a wrong width.
    """

    tokens: int | None = None
    lasts = False
