"""Price of a model: from prices=, else from the catalogue, else from the package genai-prices (extra `prices`).

An unknown price is None, never 0. genai-prices lacks some models and has no batch discounts.
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
    """Price of a model and its source.

    Attributes:
        usd_per_million: USD per million tokens. None if unknown.
        source: "prices=", "catalogue", "genai-prices", "this machine" or "unknown".
    """

    usd_per_million: Decimal | None
    source: str


def price_of(provider: Provider, prices: Mapping[str, Any] | None) -> Price:
    """Return the price of a provider's model.

    Args:
        provider: The provider with its model.
        prices: The user's prices in USD per million tokens, by "provider:model" or by model name.

    Raises:
        ConfigurationError: A price is not a number of 0 or more.
    """
    user_prices = parse_prices(prices)
    for name in (
        f"{provider.name}:{provider.model}",
        f"{provider.cache_key_provider}:{provider.model}",
        provider.model,
    ):
        if name in user_prices:
            return Price(user_prices[name], "prices=")
    if provider.usd_per_million is not None:
        return Price(provider.usd_per_million, "this machine" if provider.is_local else "catalogue")
    if not provider.endpoint and (found := _genai_price(provider.cache_key_provider, provider.model)) is not None:
        return Price(found, "genai-prices")
    return Price(None, "unknown")


def parse_prices(prices: Mapping[str, Any] | None) -> dict[str, Decimal]:
    """Return the user's prices as decimals.

    Raises:
        ConfigurationError: A price is not a number of 0 or more.
    """
    if prices is None:
        return {}
    if not isinstance(prices, Mapping):
        raise ConfigurationError(
            f"prices: must be a mapping from models to USD per million tokens (got {type(prices).__name__}). "
            "Example: {'openai:my-model': 0.02}"
        )
    return {str(name): parse_usd(f"prices[{name!r}]", value) for name, value in prices.items()}


def _genai_price(provider: str, model: str) -> Decimal | None:
    if importlib.util.find_spec(GENAI_PRICES) is None:
        return None
    try:
        genai_prices = import_module(GENAI_PRICES, "Usage", "calc_price")
        found = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=int(MILLION)), model_ref=model, provider_id=provider
        )
        price = Decimal(found.input_price)
    except Exception:  # an unknown model, or a changed API
        return None
    return price if math.isfinite(price) and price > 0 else None
