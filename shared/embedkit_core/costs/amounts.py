"""Amounts and status of named budgets, which several processes share. Integers, so that sums are exact. No I/O."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import USD, exact_decimal

NANO_USD = Decimal(10**9)  # per USD
NANO_USD_PER_TOKEN = 1000  # at a price of one USD per million tokens


class Amount(NamedTuple):
    """An amount of money and tokens: nano-USD, rounded up for each request, and tokens."""

    nano_usd: int = 0
    tokens: int = 0

    def plus(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(self.nano_usd + other.nano_usd, self.tokens + other.tokens)

    def minus(self, other: Amount) -> Amount:
        """Return the difference."""
        return Amount(self.nano_usd - other.nano_usd, self.tokens - other.tokens)

    def beyond(self, other: Amount) -> Amount:
        """Return what exceeds another amount, 0 of the unit in which nothing does."""
        return Amount(max(0, self.nano_usd - other.nano_usd), max(0, self.tokens - other.tokens))


class BudgetLimit(NamedTuple):
    """The limits of a named budget; None for no limit. A budget without both was reset: the next user sets them."""

    nano_usd: int | None = None
    tokens: int | None = None

    def __str__(self) -> str:
        """Return the limits, such as "$5 and 1,000 tokens"."""
        usd = None if self.nano_usd is None else f"${exact_decimal(USD.scaleb(Decimal(self.nano_usd), -9))}"
        tokens = None if self.tokens is None else count_noun(self.tokens, "token")
        return " and ".join(part for part in (usd, tokens) if part is not None)


class BudgetStatus(NamedTuple):
    """A named budget, summed over all processes.

    Attributes:
        name: Its name.
        limit: Its limits.
        spent: What was billed.
        lost: What was possibly billed: reserved for requests whose outcome is unknown.
        held: What is reserved: for requests in flight, and by holds.
        holds: The part of `held` that is reserved by holds. It may be released only after hours.
    """

    name: str
    limit: BudgetLimit
    spent: Amount = Amount()
    lost: Amount = Amount()
    held: Amount = Amount()
    holds: Amount = Amount()

    @property
    def has_limit(self) -> bool:
        """True if it has limits; a budget that was reset has none until its next use."""
        return self.limit != BudgetLimit()

    @property
    def used(self) -> Amount:
        """What was billed or possibly billed."""
        return self.spent.plus(self.lost)

    @property
    def left(self) -> BudgetLimit:
        """What may still be reserved; None where there is no limit."""
        usd, tokens = self.limit
        taken = self.used.plus(self.held)
        return BudgetLimit(
            None if usd is None else usd - taken.nano_usd, None if tokens is None else tokens - taken.tokens
        )

    def allows(self, amount: Amount) -> bool:
        """Return True if the budget has room for an amount."""
        usd, tokens = self.left
        return (usd is None or amount.nano_usd <= usd) and (tokens is None or amount.tokens <= tokens)


def amount_of(tokens: int, price: Decimal | None) -> Amount:
    """Return the amount of tokens at a price in USD per million, rounded up to a nano-USD; 0 USD without a price."""
    if price is None or not tokens:
        return Amount(0, tokens)
    nano_usd = USD.multiply(USD.multiply(Decimal(tokens), price), NANO_USD_PER_TOKEN)
    return Amount(int(nano_usd.to_integral_value(rounding=ROUND_CEILING)), tokens)


def to_nano_usd(usd: Decimal) -> int:
    """Return an amount of USD in nano-USD, rounded down."""
    return int(USD.multiply(usd, NANO_USD).to_integral_value(rounding=ROUND_FLOOR))


def to_usd(nano_usd: int) -> Decimal:
    """Return an amount of nano-USD in USD."""
    return USD.divide(Decimal(nano_usd), NANO_USD)
