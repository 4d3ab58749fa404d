"""The nouns of the library: frozen data that passes between its rooms."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from decimal import Context, Decimal
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias, runtime_checkable

import numpy.typing as npt

from embedkit_core.form import Cut, DType

ROUGHLY = Context(prec=2)  # for people, of what is an estimate anyway
MILLION = Decimal(1_000_000)  # tokens, for which prices are given
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

    def at_once(self, bound: int) -> int:
        """Give how many requests may be under way where a caller allows no more than `bound`."""
        return min(bound, self.in_flight or bound)

    def at_most(self, texts: int | None, tokens: int | None = None) -> Limits:
        """Give the same limits with no more than this many texts and tokens a request."""
        fewer_texts = self.texts if texts is None else min(texts, self.texts)
        fewer_tokens = min((n for n in (tokens, self.tokens) if n is not None), default=None)
        return replace(self, texts=fewer_texts, tokens=fewer_tokens)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One row of the catalogue; prices are USD per million input tokens.

    `cut` says how a vector of more dimensions becomes the model's own of fewer: its first numbers ("prefix"), after the
    mean of all was taken away ("centred"), or None where nobody documents that it does. `dtypes` are those the provider
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
    read: str | None = None
    price_source: str | None = None
    retired: str | None = None
    successor: str | None = None
    note: str | None = None


class Entry(NamedTuple):
    """One cached vector, (width,) of a type in `embedkit_core.form`, and whether its text was cut to fit the model."""

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

    `wire` is the request without the texts, as the provider's own `wire()` gave it; `timeout` is in seconds. `widths`
    are the numbers a row of the reply may have, none where only a reply can tell.
    """

    texts: Sequence[str]
    wire: Mapping[str, Any]
    timeout: float | None = None
    widths: tuple[int, ...] = ()

    def prompted(self) -> list[str]:
        """Give the texts with the wire's `prompt` before each, for a provider that has no field for it."""
        prompt = self.wire.get("prompt", "")
        return [prompt + text for text in self.texts]


class Allowance(NamedTuple):
    """What a provider says is left of one of its limits: `reset` is the seconds until all of it is there again."""

    limit: float
    remaining: float
    reset: float | None = None


class Headroom(NamedTuple):
    """What a provider says is left of its limits on requests and on tokens; None where it says nothing."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a provider answers.

    `vectors` is (n_texts, width) in the order asked, of the dtype asked for: float32 unless the settings name another.
    `tokens` are as billed, or None where the provider does not say, `truncated` the places of the texts the provider
    cut, `headroom` what it says is left of its limits.
    """

    vectors: Vectors
    tokens: int | None
    truncated: Sequence[int] = ()
    headroom: Headroom | None = None


def dollars(usd: Decimal) -> str:
    """Give an amount as people write it: no exponent, no zeros at the end."""
    return f"{usd.normalize():f}"


def shortened(model: str, most: int) -> str:
    """Give a model's name in so many characters at most: of one that is a long path its end."""
    provider, colon, name = model.partition(":")
    return model if len(model) <= most else f"{provider}{colon}…{name[len(provider) + 2 - most :]}"


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


def counted_noun(n: int, noun: str) -> str:
    """Give a number of things as people write it: "1 text", "2,000 texts"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int]) -> str:
    """Give a table whose columns are as wide as what is in them, those at `right` aligned to the right."""
    widths = [max(3, *(len(line[column]) for line in [head, *rows])) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if n in right else c.ljust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + ":" if n in right else "-" * w for n, w in enumerate(widths)]
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *map(line, rows)])


@dataclass(frozen=True, slots=True)
class Usage:
    """What was asked, what of it was sent, and what that cost.

    `texts = cache_hits + duplicates + joined + sent + failed`. A text is `sent` for the caller who pays for it and
    `joined` for those who wanted it while it was on its way. `requests` counts what went out, `retries` those among
    them that repeated an earlier one. `tokens` are the provider's; `priced_usd` is the cost of those with a known
    price, `unpriced_tokens` counts the others. `saved_tokens` are those of cache hits, estimated. Of requests that were
    cut off or not answered in time nobody knows whether they were billed: `possibly_billed_tokens` is the most it can
    be. What these come to in USD is None where a price is unknown.
    """

    texts: int = 0
    cache_hits: int = 0
    duplicates: int = 0
    joined: int = 0
    sent: int = 0
    failed: int = 0
    requests: int = 0
    retries: int = 0
    tokens: int = 0
    unpriced_tokens: int = 0
    priced_usd: Decimal = Decimal(0)
    saved_tokens: int = field(default=0, compare=False)  # an estimate
    saved_usd: Decimal | None = field(default=Decimal(0), compare=False)
    possibly_billed_tokens: int = 0
    possibly_billed_usd: Decimal | None = Decimal(0)

    @property
    def cost_usd(self) -> Decimal | None:
        """The cost in USD, or None where some tokens have no known price."""
        return None if self.unpriced_tokens else self.priced_usd

    def __str__(self) -> str:
        """Give a receipt in one line: "20,000 texts, 20,000 from cache, 0 requests"."""
        counts = {
            "from cache": self.cache_hits,
            "given twice": self.duplicates,
            "shared with other callers": self.joined,
            "sent": self.sent,
            "failed": self.failed,
        }
        said = [counted_noun(self.texts, "text"), *(f"{n:,} {what}" for what, n in counts.items() if n)]
        said.append(
            counted_noun(self.requests, "request") + (f" ({self.retries:,} of them again)" if self.retries else "")
        )
        if self.tokens:
            cost = "price unknown" if self.cost_usd is None else f"${dollars(self.cost_usd)}"
            said += [counted_noun(self.tokens, "token"), cost]
        if self.saved_usd:
            said.append(f"about ${dollars(ROUGHLY.plus(self.saved_usd))} saved")
        if self.possibly_billed_tokens:
            most = "" if self.possibly_billed_usd is None else f" (${dollars(self.possibly_billed_usd)})"
            said.append(f"up to {counted_noun(self.possibly_billed_tokens, 'token')}{most} possibly billed beside")
        return ", ".join(said)

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(_sum(getattr(self, name), getattr(other, name)) for name in USAGE))

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Give the usage that `to_dict` told of."""
        read: dict[str, Any] = {n: Decimal(v) if isinstance(v, str) else v for n, v in told.items() if n in USAGE}
        return cls(**read)

    def to_dict(self) -> dict[str, int | str | None]:
        """Give the numbers as JSON has them: dollars as strings, which lose nothing, None where unknown."""
        told: dict[str, Any] = {name: getattr(self, name) for name in USAGE} | {"cost_usd": self.cost_usd}
        return {name: dollars(value) if isinstance(value, Decimal) else value for name, value in told.items()}


USAGE = tuple(f.name for f in fields(Usage))


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors in the order of the texts asked, and how they came about.

    `vectors` is float32 (n_texts, dimensions), or of the dtype asked for; the binary ones have eight dimensions in a
    number. Rows that failed are NaN, 0 where there is no NaN, and named in `failed`.
    `space` names the vector space: vectors of different spaces must not be compared or share an index.
    `truncated` names the positions of texts that were cut to the model's limit.
    """

    vectors: Vectors
    usage: Usage
    model: str
    input_type: InputType
    space: str
    truncated: tuple[int, ...] = ()
    failed: Mapping[int, Exception] = field(default_factory=dict)

    def __repr__(self) -> str:
        n, width = self.vectors.shape
        return f"EmbeddingResult({n} x {width}, model={self.model!r}, usage={self.usage}, failed={len(self.failed)})"

    def row(self, position: int) -> Vectors:
        """Give the vector of one text: float32 (dimensions,)."""
        vector: Vectors = self.vectors[position]
        return vector

    def to_lists(self) -> list[list[float] | None]:
        """Give the vectors as Python floats, with None for a row that failed."""
        from embedkit_core.lists import to_lists

        rows: list[list[float] | None] = [*to_lists(self.vectors)]
        for position in self.failed:
            rows[position] = None
        return rows
