"""Usage: counts of texts, requests and tokens, with their cost in USD. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import ROUND_CEILING, Decimal
from typing import Any, Self

from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import USD, exact_decimal, format_usd

ALWAYS_SHOWN = ("texts", "requests", "cost_usd")  # in notebooks, also if they are 0


def _sum(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return None
    return USD.add(left, right) if isinstance(left, Decimal) else left + right


def _difference(total: Any, earlier: Any) -> Any:
    if total is None or earlier is None:
        return total
    return USD.subtract(total, earlier) if isinstance(total, Decimal) else total - earlier


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of texts, requests and tokens, with their cost.

    `texts = cache_hits + duplicates + coalesced + sent + failed + empty`.

    Attributes:
        texts: Texts of the call or calls.
        cache_hits: Texts whose vectors came from the cache.
        duplicates: Texts that are equal to an earlier text of the same call.
        coalesced: Texts that another caller's request in flight already contained. The other caller pays for them.
        sent: Texts that this caller sent and pays for.
        failed: Texts without a vector.
        empty: Empty texts, whose vectors are zero (`on_empty_text="zero"`).
        requests: Requests that were sent, including retries.
        retries: Requests that repeated an earlier one.
        tokens: Billed tokens, as the provider states them.
        unpriced_tokens: Billed tokens without a known price.
        priced_usd: Cost of the billed tokens with a known price.
        saved_tokens: Tokens of the cache hits, estimated.
        saved_usd: Cost of `saved_tokens`. None if a price is unknown.
        possibly_billed_tokens: Upper bound of the tokens of requests that were canceled or timed out. The provider may
            have billed these.
        possibly_billed_usd: Cost of `possibly_billed_tokens`. None if a price is unknown.
    """

    texts: int = 0
    cache_hits: int = 0
    duplicates: int = 0
    coalesced: int = 0
    sent: int = 0
    failed: int = 0
    empty: int = 0
    requests: int = 0
    retries: int = 0
    tokens: int = 0
    unpriced_tokens: int = 0
    priced_usd: Decimal = Decimal(0)
    saved_tokens: int = field(default=0, compare=False)
    saved_usd: Decimal | None = field(default=Decimal(0), compare=False)
    possibly_billed_tokens: int = 0
    possibly_billed_usd: Decimal | None = Decimal(0)

    @property
    def cost_usd(self) -> Decimal | None:
        """Cost in USD. None if some tokens have no known price."""
        return None if self.unpriced_tokens else self.priced_usd

    def __str__(self) -> str:
        """Return a summary in one line: "20,000 texts, 20,000 from cache, 0 requests"."""
        counts = {
            "from cache": self.cache_hits,
            "duplicate" if self.duplicates == 1 else "duplicates": self.duplicates,
            "coalesced": self.coalesced,
            "sent": self.sent,
            "failed": self.failed,
            "empty": self.empty,
        }
        retries = f" ({self.retries:,} {'retry' if self.retries == 1 else 'retries'})" if self.retries else ""
        parts = [count_noun(self.texts, "text"), *(f"{n:,} {label}" for label, n in counts.items() if n)]
        parts.append(count_noun(self.requests, "request") + retries)
        if self.tokens:
            cost = "price unknown" if self.cost_usd is None else format_usd(self.cost_usd)
            parts += [count_noun(self.tokens, "token"), cost]
        if self.saved_usd:
            parts.append(f"about {format_usd(self.saved_usd)} saved")
        if self.possibly_billed_tokens:
            most = (
                "" if self.possibly_billed_usd is None else f" ({format_usd(self.possibly_billed_usd, ROUND_CEILING)})"
            )
            parts.append(f"up to {count_noun(self.possibly_billed_tokens, 'token')}{most} possibly billed")
        return ", ".join(parts)

    def _repr_html_(self) -> str:
        """Return a table for a notebook, without zero counts."""
        from embedkit_core.common.html_tables import html_fields  # only notebooks need it

        values = {name: getattr(self, name) for name in (*USAGE_FIELDS, "cost_usd")}
        return html_fields([{name: v for name, v in values.items() if v != 0 or name in ALWAYS_SHOWN}])

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(_sum(getattr(self, name), getattr(other, name)) for name in USAGE_FIELDS))

    def __sub__(self, other: Usage) -> Usage:
        """Return the usage since an earlier reading of the same total."""
        return Usage(*(_difference(getattr(self, name), getattr(other, name)) for name in USAGE_FIELDS))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the usage that `to_dict` converted; unknown names are ignored."""
        parsed: dict[str, Any] = {
            n: Decimal(v) if isinstance(v, str) else v for n, v in values.items() if n in USAGE_FIELDS
        }
        return cls(**parsed)

    def to_dict(self) -> dict[str, int | str | None]:
        """Return all fields and `cost_usd` for JSON: USD as strings, which are exact, None if unknown."""
        values: dict[str, Any] = {name: getattr(self, name) for name in USAGE_FIELDS} | {"cost_usd": self.cost_usd}
        return {name: exact_decimal(value) if isinstance(value, Decimal) else value for name, value in values.items()}


USAGE_FIELDS = tuple(f.name for f in fields(Usage))
