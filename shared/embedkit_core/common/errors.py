"""What can go wrong, and what each error carries.

EmbedKitError
+- ConfigurationError (ValueError)     before any I/O: no such provider, dimension not offered, no API key
|  +- MissingExtraError (ImportError)  .extra, and the pip line
+- InputError (ValueError)             .indices of the offending texts, decided before anything is sent
+- BudgetError                         .limit_usd .spent_usd .needed_usd .result (what is done) .failed
+- CacheError                          logged once, counted, never fatal: the text counts as a miss
+- PartialFailureError                 .failed {position: error} .succeeded .result; only where some succeeded
+- ProviderError                       .provider .model .status .request_id .retryable .retry_after
   +- AuthenticationError              401, 403
   +- BadRequestError                  400, 404, 422
   |  +- BadTextError                  a 400 that may be about one text: the engine looks for it
   |  +- TextTooLongError              one text is over the model's limit; .tokens .limit .positions
   |  +- RequestTooLargeError          too many texts or tokens in one request: halved and sent again
   |  +- EncodingRefusedError          the server refuses base64, or means another by it: asked again for floats
   +- QuotaError                       402, insufficient_quota
   +- RateLimitError*                  429
   +- UnavailableError*                5xx, connection lost
   +- TimedOutError*                   no answer within timeout=, or nothing more is waited for after deadline=
   +- BadReplyError                    wrong count, shape, order or a non-finite number; never cached

* retryable. Messages name the thing, the value and the way out; they never hold a key or a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedkit_core.common.results import EmbeddingResult
    from embedkit_core.common.types import RateLimitStatus
    from embedkit_core.common.usage import Usage


def _rebuild(cls: type[EmbedKitError], args: tuple[object, ...], state: dict[str, object]) -> EmbedKitError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class EmbedKitError(Exception):
    """Base of every error this library raises on purpose; it can be copied and sent to another process.

    `usage` is what the call that failed took all the same; None where nothing was asked.
    """

    usage: Usage | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class ConfigurationError(EmbedKitError, ValueError):
    """The settings cannot work; raised before any I/O."""


class MissingExtraError(ConfigurationError, ImportError):
    """A package that an optional feature needs is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an extra that is not installed: pip install "rag-embedkit[{extra}]"')
        self.extra = extra


class InputError(EmbedKitError, ValueError):
    """Some texts cannot be embedded; nothing was sent."""

    def __init__(self, message: str, indices: Sequence[int]) -> None:
        super().__init__(message)
        self.indices = tuple(indices)


class BudgetError(EmbedKitError):
    """What is asked may cost more than a budget has left; nothing that could exceed it was sent.

    `spent_usd` is what was billed and what was possibly billed, `needed_usd` the most that is still needed, None where
    the price is unknown; the same in tokens. What is done is in `result` and in the cache, `failed` names the rest.
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
        self.failed = dict(failed or {})
        self.succeeded: Sequence[int] = succeeded if isinstance(succeeded, range) else tuple(succeeded)
        self.result = result


class CacheError(EmbedKitError):
    """The cache could not be read or written; the work goes on without it."""


class PartialFailureError(EmbedKitError):
    """Some texts failed for good and others succeeded; what succeeded is in `result` and in the cache.

    A stream raises it at the first text that fails: `failed` names that one, `succeeded` all before it, whose rows have
    been given, so that the `result` has none. Positions count from the start of the stream.
    """

    def __init__(
        self, message: str, *, failed: Mapping[int, EmbedKitError], succeeded: Sequence[int], result: EmbeddingResult
    ) -> None:
        super().__init__(message)
        self.failed = dict(failed)
        self.succeeded: Sequence[int] = succeeded if isinstance(succeeded, range) else tuple(succeeded)
        self.result = result


class ProviderError(EmbedKitError):
    """The provider refused or failed a request; raised as itself when everything failed for one cause.

    `retry_after` is the seconds the provider asks to wait, `rate_limits` what is left of its limits. `unsent` says
    that the request never reached the provider, and was not billed for sure.
    """

    retryable = False
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


class AuthenticationError(ProviderError):
    """The key is missing, wrong, or not allowed to use this model."""


class BadRequestError(ProviderError):
    """The provider refuses the request as it stands."""


class BadTextError(BadRequestError):
    """The provider refuses a request, perhaps for one of its texts."""


class TextTooLongError(BadRequestError):
    """One text is longer than the model takes.

    `tokens` is the length the provider counted and `limit` what it takes, where it said so. While it is on its way to
    the engine, `positions` maps the places in the request of the texts concerned to their lengths, where known.
    """

    def __init__(
        self,
        *,
        tokens: int | None = None,
        limit: int | None = None,
        positions: Mapping[int, int | None] | None = None,
        provider: str = "",
        model: str = "",
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        known = tokens is not None and limit is not None
        length = f"has {tokens} tokens, over the limit of {limit}" if known else "is longer than the model takes"
        super().__init__(
            f"a text {length}; on_long_text='truncate' or 'mean' embeds it all the same",
            provider=provider,
            model=model,
            status=status,
            request_id=request_id,
        )
        self.tokens = tokens
        self.limit = limit
        self.positions = dict(positions or {})

    def of(self, tokens: int | None) -> TextTooLongError:
        """Give the same refusal for one of the texts it is about."""
        return TextTooLongError(
            tokens=tokens,
            limit=self.limit,
            provider=self.provider,
            model=self.model,
            status=self.status,
            request_id=self.request_id,
        )


class RequestTooLargeError(BadRequestError):
    """One request held more than the provider takes; `counts_texts` says that it was texts, not tokens or bytes."""

    counts_texts = False


class EncodingRefusedError(BadRequestError):
    """The server does not know the encoding asked for, or means another by it; the client asks for floats from now on.

    `tokens` is what a reply that could not be read was billed at, where it said so.
    """

    tokens: int | None = None


class QuotaError(ProviderError):
    """The account has no credit left; waiting does not help."""


class RateLimitError(ProviderError):
    """Too many requests or tokens a minute; `counts_requests` says that it was requests."""

    retryable = True
    counts_requests = False


class UnavailableError(ProviderError):
    """The provider is overloaded, failing or out of reach."""

    retryable = True


class TimedOutError(ProviderError):
    """No answer came in time, or a call's deadline passed; the provider may have billed the request all the same."""

    retryable = True


class BadReplyError(ProviderError):
    """The reply does not fit the request: wrong count, order, width, or a number that is not finite.

    `tokens` is what it was billed at, where it said so; `lasts` says that other texts would be answered no better.
    """

    tokens: int | None = None
    lasts = False
