"""Price of a model: from prices=, else from the catalogue, else from the package genai-prices (extra `prices`).

An unknown price is None, never 0. genai-prices lacks some models and has no batch discounts.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import import_module
from embedkit_core.common.formatting import suggest
from embedkit_core.common.money import MILLION, THIS_MACHINE
from embedkit_core.common.validation import parse_usd
from embedkit_core.providers.base import Provider
from embedkit_core.providers.catalogue import find as find_model

GENAI_PRICES = "genai_prices"
MIN_SIMILARITY = 0.9  # of a misspelled name
DIGITS = re.compile(r"\d")

logger = logging.getLogger("embedkit_core.config")


class Price(NamedTuple):
    """Price of a model and its source.

    Attributes:
        usd_per_million: USD per million tokens. None if unknown.
        source: "prices=", "catalogue", "catalogue, unconfirmed", "genai-prices", "this machine" or "unknown".
        is_confirmed: False if the catalogue has the price from another source than the provider.
    """

    usd_per_million: Decimal | None
    source: str
    is_confirmed: bool = True


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
    _warn_of_misspelled_names(provider, user_prices)
    if provider.usd_per_million is not None:
        confirmed = "catalogue" if provider.has_confirmed_price else "catalogue, unconfirmed"
        source = THIS_MACHINE if provider.is_local else confirmed
        return Price(provider.usd_per_million, source, provider.has_confirmed_price)
    if not provider.endpoint and (found := _genai_price(provider.cache_key_provider, provider.model)) is not None:
        return Price(found, "genai-prices")
    return Price(None, "unknown")


def batch_price_of(provider: Provider) -> Price:
    """Return the price of a provider's batch endpoint. `prices=` has none of these."""
    price = provider.usd_per_million_batch
    if provider.batch_endpoint is None or price is None:
        return Price(None, "unknown")
    source = "catalogue" if provider.has_confirmed_price else "catalogue, unconfirmed"
    return Price(price, source, provider.has_confirmed_price)


def _warn_of_misspelled_names(provider: Provider, names: Iterable[str]) -> None:
    """Log a warning if a name without effect is like the model's. A table of prices may have other models, too."""
    spellings = {name.lower(): name for name in (f"{provider.name}:{provider.model}", provider.model)}
    for name in names:
        owner, _, model = name.partition(":")
        # A gateway's names have the owner in front; here they may be meant for the owner's own model.
        is_listed = ("/" not in name and find_model(name) is not None) or find_model(model, owner) is not None
        has_same_digits = DIGITS.findall(name) == DIGITS.findall(provider.model)
        if not is_listed and has_same_digits and (hint := suggest(name.lower(), spellings, cutoff=MIN_SIMILARITY)):
            warn_of_name(name, hint)


@cache
def warn_of_name(name: str, hint: str) -> None:
    """Log a warning about a misspelled name, once per process."""
    logger.warning("prices: %r is no name of this model, so its price has no effect; %s", name, hint)


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
