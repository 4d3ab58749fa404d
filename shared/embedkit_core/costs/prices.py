"""What a model's tokens cost: the user's word, the catalogue's, or that of the package genai-prices, in this order.

Unknown is None, never 0. genai-prices (extra `prices`) lacks some models and knows no discount for batches.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.usage import MILLION
from embedkit_core.common.validation import parse_usd
from embedkit_core.providers.base import Provider

GENAI_PRICES = "genai_prices"


class Price(NamedTuple):
    """USD per million tokens, None where nobody knows, and who says so."""

    usd_per_million: Decimal | None
    source: str


def price_of(provider: Provider, prices: Mapping[str, Any] | None) -> Price:
    """Give what a model's tokens cost, by `prices` where it names the model as "provider:model" or by its bare name.

    Raises:
        ConfigurationError: a price is no number of 0 or more.
    """
    given = checked(prices)
    for name in (
        f"{provider.name}:{provider.model}",
        f"{provider.cache_key_provider}:{provider.model}",
        provider.model,
    ):
        if name in given:
            return Price(given[name], "prices=")
    if provider.usd_per_million is not None:
        return Price(provider.usd_per_million, "this machine" if provider.is_local else "catalogue")
    if not provider.endpoint and (found := _second_source(provider.cache_key_provider, provider.model)) is not None:
        return Price(found, "genai-prices")
    return Price(None, "unknown")


def checked(prices: Mapping[str, Any] | None) -> dict[str, Decimal]:
    """Give the user's prices as decimals.

    Raises:
        ConfigurationError: one is no number of 0 or more.
    """
    if prices is None:
        return {}
    if not isinstance(prices, Mapping):
        raise ConfigurationError("prices must map models to USD per million tokens, as in {'openai:my-model': 0.02}")
    return {str(name): parse_usd(f"prices[{name!r}]", value) for name, value in prices.items()}


def _second_source(provider: str, model: str) -> Decimal | None:
    if importlib.util.find_spec(GENAI_PRICES) is None:
        return None
    try:
        genai_prices = import_module(GENAI_PRICES)
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=int(MILLION)), model_ref=model, provider_id=provider
        )
        price = Decimal(found.input_price)
    except Exception:  # it does not know the model, or has changed
        return None
    return price if math.isfinite(price) and price > 0 else None
