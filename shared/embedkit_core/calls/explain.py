"""Explain one text: its request, its cache key and where its vector would come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from embedkit_core.cache.embedder_cache import EmbedderCache
from embedkit_core.cache.key import key_of
from embedkit_core.calls.plan import plan_call
from embedkit_core.common.errors import InputError
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.prices import Price
from embedkit_core.providers.base import Provider


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call for one text would do.

    Attributes:
        model: "provider:model".
        endpoint: The base URL, "this machine" for a local model, or "the provider's own".
        request_body: The request without the text.
        key: The cache key, as 64 hexadecimal digits.
        key_parts: What the key covers besides the text.
        served_from: "memory", "cache" or "provider".
        cache: The folder or address of the cache, or "none", with "(RAG_EMBEDKIT_CACHE)" if this variable names it.
        estimated_tokens: The estimated length of the text.
        usd_per_million: USD per million input tokens, None if unknown.
        price_source: "prices=", "catalogue", "catalogue, unconfirmed", "genai-prices", "this machine" or "unknown".
    """

    model: str
    endpoint: str
    request_body: Mapping[str, Any]
    key: str
    key_parts: Mapping[str, Any]
    served_from: str
    cache: str
    estimated_tokens: int
    usd_per_million: Decimal | None
    price_source: str


def explain(
    provider: Provider, price: Price, vector_cache: EmbedderCache, spec: InputTypeSpec, text: str
) -> Explanation:
    """Return what a call for one text would send and where its vector would come from."""
    plan = plan_call([text], spec.key_prefix, allows_empty=spec.allows_empty)
    if plan.empty:
        raise InputError("The text is empty: its vector is zero, and nothing is looked up or sent.", (0,))
    keys = (plan.keys[0], *(key_of(variant.prefix, plan.texts[0]) for variant in spec.cached_variants))
    tiers = map(vector_cache.where, keys)
    return Explanation(
        model=spec.request_spec.model,
        endpoint=provider.endpoint or ("this machine" if provider.is_local else "the provider's own"),
        request_body=dict(spec.request_spec.body),
        key=plan.keys[0].hex(),
        key_parts=dict(spec.key_parts),
        served_from=next((tier for tier in tiers if tier != "provider"), "provider"),
        cache=vector_cache.description,
        estimated_tokens=plan.sizes[0],
        usd_per_million=price.usd_per_million,
        price_source=price.source,
    )
