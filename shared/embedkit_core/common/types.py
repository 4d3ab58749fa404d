"""Data types and protocols that the packages of the library exchange. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from embedkit_core.common.vectors import Cut, DType

Vectors: TypeAlias = npt.NDArray[Any]  # float32 by default, see DType
InputType: TypeAlias = Literal["document", "query"]
LongText: TypeAlias = Literal["truncate", "error", "mean"]
EmptyText: TypeAlias = Literal["error", "zero"]
Task: TypeAlias = Literal["classification", "clustering", "similarity", "code"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a model on one request, and on the requests in flight.

    Attributes:
        texts: Maximum number of texts in a request.
        tokens: Maximum number of tokens in a request. None if the provider states no limit.
        text_tokens: Maximum number of tokens in a text. None if the provider states no limit.
        in_flight: Maximum number of requests in flight. None for no limit besides the user's.
    """

    texts: int = 2048
    tokens: int | None = None
    text_tokens: int | None = None
    in_flight: int | None = None

    def max_in_flight(self, bound: int) -> int:
        """Return the maximum number of requests in flight for a caller that allows `bound` of them."""
        return min(bound, self.in_flight or bound)

    def capped(self, texts: int | None, tokens: int | None = None) -> Limits:
        """Return these limits with at most `texts` texts and `tokens` tokens in a request; None changes nothing."""
        fewer_texts = self.texts if texts is None else min(texts, self.texts)
        fewer_tokens = min((n for n in (tokens, self.tokens) if n is not None), default=None)
        return replace(self, texts=fewer_texts, tokens=fewer_tokens)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model of the catalogue.

    Attributes:
        provider: Name of the provider, the part before the colon of "provider:model".
        name: The provider's name of the model.
        dimensions: Default number of dimensions. None if only a reply shows it.
        allowed_dimensions: Dimensions that can be requested. None if unknown.
        limits: Limits on a request and on a text.
        usd_per_million: Price in USD per million input tokens. None if unknown.
        status: "current", "legacy" (superseded, still available) or "retired" (no longer available).
        source: Where the limits were read.
        usd_per_million_batch: Price of the provider's batch endpoint, in USD per million input tokens.
        dtypes: Data types that the provider offers.
        cut: How a vector is truncated to fewer dimensions: "prefix" keeps the first numbers, "centered" subtracts the
            mean of the whole vector first. None if the model does not document either.
        unit_length: True if the model returns vectors of length 1, False if the library normalizes them, None if they
            stay as they are.
        asymmetric: True if a text has different vectors as a query and as a document.
        prompts: Prefixes that the library adds to texts, by input type.
        tasks: By task, what replaces `prompts` for a model with prompts, else the values of the provider's role field.
        space: Name of the vector space. Only vectors of models in the same space are comparable.
        tokenizer: "tiktoken:encoding" or "huggingface:name". None if unknown.
        released: Release date of the model.
        checked_on: Date on which `source` and `price_source` were read.
        price_source: Where the prices were read.
        retired: Date since which the model is no longer available.
        successor: Replacement that the provider recommends. Its vectors are not comparable with this model's.
        note: Anything else that a user of the model needs.
        confirmed: False if the prices are not from a page of the provider. A budget in USD refuses such a price.
        limits_confirmed: False if the limits are not from a page of the provider.
    """

    provider: str
    name: str
    dimensions: int | None
    allowed_dimensions: tuple[int, ...] | range | None
    limits: Limits
    usd_per_million: Decimal | None
    status: str
    source: str
    usd_per_million_batch: Decimal | None = None
    dtypes: tuple[DType, ...] = ("float32",)
    cut: Cut | None = None
    unit_length: bool | None = None
    asymmetric: bool = False
    prompts: Mapping[InputType, str] = field(default_factory=dict, hash=False)
    tasks: Mapping[Task, Mapping[InputType, str]] = field(default_factory=dict, hash=False)
    space: str | None = None
    tokenizer: str | None = None
    released: str | None = None
    checked_on: str | None = None
    price_source: str | None = None
    retired: str | None = None
    successor: str | None = None
    note: str | None = None
    confirmed: bool = True
    limits_confirmed: bool = True


class RateSettings(NamedTuple):
    """The limits per minute of one caller; None for no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


NO_LIMITS = RateSettings()


class Entry(NamedTuple):
    """One cached vector.

    Attributes:
        vector: Shape (width,), one of the dtypes of `common.vectors`.
        truncated: True if the text was truncated to the model's limit.
        space: Name of the vector space, for the maintenance of a cache. None if unknown. A cache need not store it.
    """

    vector: Vectors
    truncated: bool = False
    space: str | None = None


@runtime_checkable
class Cache(Protocol):
    """Interface of a cache. Keys are 32 bytes; vectors are (width,) of float32, float16, int8 or uint8.

    `get_many` is called from any thread, also concurrently. `set_many` is called from one thread at a time, not
    always the same one. A vector that is lost or not stored is embedded again; this is not an error.
    """

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the entries that are in the cache, by key."""
        ...

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Store entries. They must be durable when this returns."""
        ...

    def close(self) -> None:
        """Close connections and files. The next call opens them again."""
        ...


@runtime_checkable
class RateLimiter(Protocol):
    """Interface of a rate limiter. The limiters of LangChain and LlamaIndex implement it.

    `acquire` is called once per request, on a thread of the library, and not for cache hits. If it has a parameter
    `num_tokens`, it receives the estimated tokens of the request. If the limiter has an attribute `tokens_per_minute`,
    no request has more tokens than that.
    """

    def acquire(self) -> object:
        """Block until one request may be sent."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that a provider embeds in one request.

    Attributes:
        texts: The texts of the request.
        body: The request without the texts, as the provider's `request_body()` returned it.
        timeout: Seconds to wait for the reply. None for no limit.
        widths: Row widths that the reply may have. Empty if only the reply shows the width.
    """

    texts: Sequence[str]
    body: Mapping[str, Any]
    timeout: float | None = None
    widths: tuple[int, ...] = ()

    def texts_with_prompt(self) -> list[str]:
        """Return each text with the body's `prompt` in front, for providers without a field for it."""
        prompt = self.body.get("prompt", "")
        return [prompt + text for text in self.texts]


class LimitStatus(NamedTuple):
    """State of one rate limit, as a provider's response states it.

    Attributes:
        limit: Requests or tokens allowed per window.
        remaining: Requests or tokens left in the window.
        reset: Seconds until the whole limit is available again. None if not stated.
    """

    limit: float
    remaining: float
    reset: float | None = None


class RateLimitStatus(NamedTuple):
    """State of a provider's rate limits.

    Attributes:
        requests: Limit on requests. None if the response does not state it.
        tokens: Limit on tokens. None if the response does not state it.
    """

    requests: LimitStatus | None = None
    tokens: LimitStatus | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Reply of a provider to a batch.

    Attributes:
        vectors: Shape (n_texts, width), in the order of the batch, in the requested dtype (float32 by default).
        tokens: Billed tokens. None if the provider does not state them.
        truncated: Positions in the batch of the texts that the provider truncated.
        rate_limits: Remaining rate limits. None if the provider does not state them.
        model: Name of the model that replied, for telemetry. None if the provider does not state it.
    """

    vectors: Vectors
    tokens: int | None
    truncated: Sequence[int] = ()
    rate_limits: RateLimitStatus | None = None
    model: str | None = None
