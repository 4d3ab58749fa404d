"""The nouns of the library: frozen data that passes between its rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from embedkit_core.common.vectors import Cut, DType

Vectors: TypeAlias = npt.NDArray[Any]  # float32 unless another dtype is asked for
InputType: TypeAlias = Literal["document", "query"]
LongText: TypeAlias = Literal["truncate", "error", "mean"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request to a model may hold, and how many may be under way at once.

    `texts` and `tokens` bound a request, `text_tokens` one text; None where the provider states no limit.
    """

    texts: int = 2048
    tokens: int | None = None
    text_tokens: int | None = None
    in_flight: int | None = None

    def max_in_flight(self, bound: int) -> int:
        """Give how many requests may be under way where a caller allows no more than `bound`."""
        return min(bound, self.in_flight or bound)

    def capped(self, texts: int | None, tokens: int | None = None) -> Limits:
        """Give the same limits with no more than this many texts and tokens a request."""
        fewer_texts = self.texts if texts is None else min(texts, self.texts)
        fewer_tokens = min((n for n in (tokens, self.tokens) if n is not None), default=None)
        return replace(self, texts=fewer_texts, tokens=fewer_tokens)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One row of the catalogue; prices are USD per million input tokens.

    `cut` says how a vector of more dimensions becomes the model's own of fewer: its first numbers ("prefix"), after the
    mean of all was taken away ("centered"), or None where nobody documents that it does. `dtypes` are those the provider
    offers. `unit_length` is True where the model promises vectors of length 1, False where they are made so here, None
    where they are left as they come. `prompts` are put before texts by us. Models of one `space` may be compared.
    `read` is the date on which limits were read at `source` and prices at `price_source`; `status` is "current",
    "legacy" or "retired"; `successor` is the model its provider names in its stead, whose vectors are others.
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
    space: str | None = None
    tokenizer: str | None = None
    released: str | None = None
    checked_on: str | None = None
    price_source: str | None = None
    retired: str | None = None
    successor: str | None = None
    note: str | None = None


class Entry(NamedTuple):
    """One cached vector, (width,) of a type in `common.vectors`, and whether its text was truncated."""

    vector: Vectors
    truncated: bool = False


@runtime_checkable
class Cache(Protocol):
    """What the library asks of a cache; keys are 32 bytes, vectors (width,) of float32, float16, int8 or uint8.

    `get_many` is called from any thread, `set_many` from one at a time, which need not be the same. Failing to keep
    or to find a vector is no error: it is paid for again.
    """

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Give the entries there are."""
        ...

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Keep entries; they are safe when this returns."""
        ...

    def close(self) -> None:
        """Let go of what is open; the next call opens it again."""
        ...


@runtime_checkable
class RateLimiter(Protocol):
    """What the library asks of a rate limiter; those of LangChain and LlamaIndex are such.

    `acquire` blocks until one request may go out, and is called on a thread of the library's own, once for each request
    and never for a hit. If it takes `num_tokens`, it is told the request's tokens, estimated; a `tokens_per_minute`
    that it has bounds the tokens of one request.
    """

    def acquire(self) -> object:
        """Wait for one permit."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What a provider is asked: texts that share one request.

    `body` is the request without the texts, from the provider's `request_body()`; `timeout` is in seconds. `widths`
    are the numbers a row of the reply may have, none where only a reply can tell.
    """

    texts: Sequence[str]
    body: Mapping[str, Any]
    timeout: float | None = None
    widths: tuple[int, ...] = ()

    def texts_with_prompt(self) -> list[str]:
        """Give the texts with the wire's `prompt` before each, for a provider that has no field for it."""
        prompt = self.body.get("prompt", "")
        return [prompt + text for text in self.texts]


class LimitStatus(NamedTuple):
    """What a provider says is left of one of its limits: `reset` is the seconds until all of it is there again."""

    limit: float
    remaining: float
    reset: float | None = None


class RateLimitStatus(NamedTuple):
    """What a provider says is left of its limits on requests and on tokens; None where it says nothing."""

    requests: LimitStatus | None = None
    tokens: LimitStatus | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a provider answers.

    `vectors` is (n_texts, width) in the order asked, of the dtype asked for: float32 unless the settings name another.
    `tokens` are as billed, or None where the provider does not say, `truncated` the places of the texts the provider
    cut, `rate_limits` what it says is left of its limits.
    """

    vectors: Vectors
    tokens: int | None
    truncated: Sequence[int] = ()
    rate_limits: RateLimitStatus | None = None
