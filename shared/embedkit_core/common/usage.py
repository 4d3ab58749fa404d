"""Usage: counts of texts, requests and tokens, with their cost in USD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any, Self

from embedkit_core.common.formatting import TWO_DIGITS, count_noun, format_usd

MILLION = Decimal(1_000_000)  # tokens, for which prices are given


def _sum(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


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
    coalesced: int = 0
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
            "shared with other callers": self.coalesced,
            "sent": self.sent,
            "failed": self.failed,
        }
        said = [count_noun(self.texts, "text"), *(f"{n:,} {what}" for what, n in counts.items() if n)]
        said.append(
            count_noun(self.requests, "request") + (f" ({self.retries:,} of them again)" if self.retries else "")
        )
        if self.tokens:
            cost = "price unknown" if self.cost_usd is None else f"${format_usd(self.cost_usd)}"
            said += [count_noun(self.tokens, "token"), cost]
        if self.saved_usd:
            said.append(f"about ${format_usd(TWO_DIGITS.plus(self.saved_usd))} saved")
        if self.possibly_billed_tokens:
            most = "" if self.possibly_billed_usd is None else f" (${format_usd(self.possibly_billed_usd)})"
            said.append(f"up to {count_noun(self.possibly_billed_tokens, 'token')}{most} possibly billed beside")
        return ", ".join(said)

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(_sum(getattr(self, name), getattr(other, name)) for name in USAGE_FIELDS))

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Give the usage that `to_dict` told of."""
        read: dict[str, Any] = {
            n: Decimal(v) if isinstance(v, str) else v for n, v in told.items() if n in USAGE_FIELDS
        }
        return cls(**read)

    def to_dict(self) -> dict[str, int | str | None]:
        """Give the numbers as JSON has them: dollars as strings, which lose nothing, None where unknown."""
        told: dict[str, Any] = {name: getattr(self, name) for name in USAGE_FIELDS} | {"cost_usd": self.cost_usd}
        return {name: format_usd(value) if isinstance(value, Decimal) else value for name, value in told.items()}


USAGE_FIELDS = tuple(f.name for f in fields(Usage))
