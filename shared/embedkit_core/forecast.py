"""What is said before anything is sent: of many texts what they would take, of one where its vector would come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

from embedkit_core.types import counted_noun, dollars


@dataclass(frozen=True, slots=True)
class Estimate:
    """What embedding some texts would take; nothing was sent.

    `tokens` are what is likely to be billed, `max_tokens` a bound that no bill exceeds, but for the prompts of a text's
    pieces with "mean" where the model's limit is not known; `cost_usd` and `max_cost_usd` what they cost, None where
    the price is unknown. `saved_usd` is what the hits would have cost, and `cost_per_text_usd` the cost over all
    `texts`, hits and duplicates too. `seconds` is the time it takes at the limits that are known, None for a model on
    this machine that has not run yet. `token_source` and `price_source` say how tokens and price are known.
    """

    model: str
    texts: int
    unique_texts: int
    cache_hits: int
    texts_to_send: int
    tokens: int
    max_tokens: int
    cost_usd: Decimal | None
    max_cost_usd: Decimal | None
    saved_usd: Decimal | None
    cost_per_text_usd: Decimal | None
    requests: int
    seconds: float | None
    token_source: str
    price_source: str

    def __str__(self) -> str:
        """Give it in one line: "1,000 texts, 200 from cache, 800 to send in 4 requests, about 96,000 tokens, ..."."""
        said = [counted_noun(self.texts, "text")]
        if self.texts != self.unique_texts:
            said.append(f"{self.unique_texts:,} different ones")
        said.append(f"{self.cache_hits:,} from cache")
        said.append(f"{self.texts_to_send:,} to send in {counted_noun(self.requests, 'request')}")
        if self.texts_to_send:
            said.append(f"about {counted_noun(self.tokens, 'token')}")
            if self.cost_usd is None or self.max_cost_usd is None:
                said.append("price unknown")
            else:
                said.append(f"about ${dollars(self.cost_usd)}, ${dollars(self.max_cost_usd)} at most")
            said.append("time unknown" if self.seconds is None else f"about {self.seconds:,.1f} s")
        if self.saved_usd:
            said.append(f"the cache saves ${dollars(self.saved_usd)}")
        return ", ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as JSON has them: dollars as strings, which lose nothing, None where unknown."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: dollars(value) if isinstance(value, Decimal) else value for name, value in told.items()}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen for one text: the request without it, its key, and where its vector would come from.

    `served_from` is "memory", "cache" or "provider"; `estimated_tokens` a guess, `usd_per_million` None where unknown,
    and `price_source` says who knows: "prices=", "catalogue", "genai-prices", "this machine" or "unknown".
    """

    model: str
    endpoint: str
    wire: Mapping[str, Any]
    key: str
    key_parts: Mapping[str, Any]
    served_from: str
    estimated_tokens: int
    usd_per_million: Decimal | None
    price_source: str
