"""Explain a call for one text: the request, the key, and where the vector would come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from embedkit_core.cache.key import key_of
from embedkit_core.cache.tiered import TieredCache
from embedkit_core.calls.plan import plan_call
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.prices import Price
from embedkit_core.providers.base import Provider


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen for one text: the request without it, its key, and where its vector would come from.

    `served_from` is "memory", "cache" or "provider"; `estimated_tokens` a guess, `usd_per_million` None where unknown,
    and `price_source` says who knows: "prices=", "catalogue", "genai-prices", "this machine" or "unknown".
    """

    model: str
    endpoint: str
    request_body: Mapping[str, Any]
    key: str
    key_parts: Mapping[str, Any]
    served_from: str
    estimated_tokens: int
    usd_per_million: Decimal | None
    price_source: str


def explain(provider: Provider, price: Price, store: TieredCache, role: InputTypeSpec, text: str) -> Explanation:
    """Say what a call for one text would send, and where its vector would come from."""
    plan = plan_call([text], role.key_prefix)
    places = (
        store.where(key) for key in (plan.keys[0], *(key_of(s.prefix, plan.texts[0]) for s in role.cached_variants))
    )
    return Explanation(
        model=role.request_spec.model,
        endpoint=provider.endpoint or "the provider's own",
        request_body=dict(role.request_spec.body),
        key=plan.keys[0].hex(),
        key_parts=dict(role.key_parts),
        served_from=next((place for place in places if place != "provider"), "provider"),
        estimated_tokens=plan.sizes[0],
        usd_per_million=price.usd_per_million,
        price_source=price.source,
    )
