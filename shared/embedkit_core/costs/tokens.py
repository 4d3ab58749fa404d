"""Token arithmetic: estimates, upper bounds, and division of a bill. No I/O."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from embedkit_core.common.money import MILLION, USD

_multiply, _divide = USD.multiply, USD.divide  # bound once: each text of a call with a budget needs them twice


def cost_or_none(tokens: int, price: Decimal | None) -> Decimal | None:
    """Return the cost of tokens in USD. None if the price is unknown, but 0 for no tokens.

    Args:
        tokens: Number of tokens.
        price: USD per million tokens.
    """
    if price is None:
        return None if tokens else Decimal(0)
    return cost_of(tokens, price)


def cost_or_zero(tokens: int, price: Decimal | None) -> Decimal:
    """Return the cost of tokens in USD at a price per million. 0 if the price is unknown."""
    return Decimal(0) if price is None else cost_of(tokens, price)


def cost_of(tokens: int | Decimal, price: Decimal) -> Decimal:
    """Return the cost of tokens in USD at a price per million."""
    return _divide(_multiply(tokens, price), MILLION)


def max_tokens(text: str) -> int:
    """Return an upper bound for the tokens of a text: its bytes in UTF-8, or in NFKC if that is longer."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))


def estimate_tokens(text: str, encoded: bytes) -> int:
    """Return an estimate of the tokens of a text, for rate limiting and batching but not for budgets.

    Measured against cl100k: English 1.1, code 1.2, Chinese 1.2, Russian 1.6 times the true count.

    Args:
        text: The text.
        encoded: The text in UTF-8.
    """
    return int(len(encoded) / 3.6 + 0.4 * (len(encoded) - len(text))) + 1


def split_bill(total: int, sizes: Sequence[int]) -> list[int]:
    """Return the billed tokens of each text in proportion to its size: integers whose sum is `total`."""
    weight = sum(sizes)
    if not weight:
        return [total if i == 0 else 0 for i in range(len(sizes))]
    shares, done, given = [], 0, 0
    for size in sizes:
        done += size
        upto = total * done // weight
        shares.append(upto - given)
        given = upto
    return shares
