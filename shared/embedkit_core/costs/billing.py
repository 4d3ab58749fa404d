"""Billing of a call: its price, meters and budgets. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

from embedkit_core.common.errors import BudgetError, EmbedKitError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import exact_decimal, format_usd
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.costs.amounts import BudgetStatus, to_usd
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter, TextCounts, usage_of
from embedkit_core.costs.prices import Price
from embedkit_core.costs.tokens import cost_or_zero
from embedkit_core.costs.tracker import UsageTracker

THE_BATCH = "the batch"  # in errors, in place of a text


@dataclass(slots=True)
class CallBilling:
    """The price of a call's tokens, the meters that count them and the budgets that limit them.

    Attributes:
        meters: Meters of the embedder and of the active trackers.
        price: USD per million tokens. None if unknown.
        budgets: Budgets of the embedder and of the active trackers.
        has_confirmed_price: True if the price is known and is the provider's or the user's.
    """

    meters: Sequence[Meter] = ()
    price: Decimal | None = None
    budgets: Sequence[Budget] = ()
    has_confirmed_price: bool = True

    @classmethod
    def of_call(
        cls,
        meter: Meter,
        budget: Budget | None,
        price: Price,
        trackers: Sequence[UsageTracker],
        *,
        model: str,
        input_type: InputType,
    ) -> CallBilling:
        """Return the billing for the embedder's meter and budget, and those of the active trackers."""
        meters = [meter]
        budgets = [] if budget is None else [budget]
        for tracker in trackers:
            meters.append(tracker.meter(model, input_type, price.usd_per_million))
            if tracker.budget is not None:
                budgets.append(tracker.budget)
        return cls(meters, price.usd_per_million, budgets, price.is_confirmed)

    @property
    def needs_price(self) -> bool:
        """True if a budget limits USD and the price of the model is unknown or not confirmed."""
        has_price = self.price is not None and self.has_confirmed_price
        return not has_price and any(budget.limit_usd is not None for budget in self.budgets)

    @property
    def named_budgets(self) -> dict[str, Budget]:
        """The budgets that several processes share, by name."""
        return {budget.name: budget for budget in self.budgets if budget.name is not None}

    @property
    def own_budgets(self) -> list[Budget]:
        """The budgets of this process."""
        return [budget for budget in self.budgets if budget.name is None]

    def count(self, counts: TextCounts) -> None:
        """Add the outcomes of the call's texts to all meters."""
        for meter in self.meters:
            meter.count(counts)

    def usage(self, counts: TextCounts) -> Usage:
        """Return the usage for the outcomes of the call's texts, including the savings of cache hits."""
        return usage_of(counts, self.price)

    def allows(self, tokens: int) -> bool:
        """Return True if every budget has room for `tokens`."""
        return all(budget.allows(tokens, self.price) for budget in self.budgets)

    def check(self, tokens: int) -> BudgetError | None:
        """Return the error of a budget without room for `tokens`, unless a reservation may still be released."""
        for budget in self.budgets:
            if not budget.has_reservations and not budget.allows(tokens, self.price):
                return budget_error(budget, tokens, self.price)
        return None

    def refresh_errors(self, failed: Mapping[int, EmbedKitError]) -> Mapping[int, EmbedKitError]:
        """Return the errors of texts, with current amounts in the errors of budgets without a name."""
        return {n: self._refresh(error) if isinstance(error, BudgetError) else error for n, error in failed.items()}

    def _refresh(self, error: BudgetError) -> BudgetError:
        """Return the error with current amounts, or unchanged if the budget has room for the text by now."""
        for budget in self.budgets:
            own = (budget.name, budget.limit_usd, budget.limit_tokens)
            same = own == (None, error.limit_usd, error.limit_tokens) and error.budget_name is None
            if same and error.needed_tokens is not None and not budget.allows(error.needed_tokens, self.price):
                return budget_error(budget, error.needed_tokens, self.price)
        return error

    def reserve(self, tokens: int) -> None:
        """Reserve `tokens` in every budget."""
        for budget in self.budgets:
            budget.reserve(tokens, self.price)

    def settle(self, reserved: int, billed: int) -> Usage:
        """Replace a reservation by the billed tokens; return their usage."""
        for budget in self.budgets:
            budget.settle(reserved, billed, self.price)
        if not billed:
            return Usage()
        if self.price is None:
            return Usage(tokens=billed, unpriced_tokens=billed)
        return Usage(tokens=billed, priced_usd=cost_or_zero(billed, self.price))

    def mark_unconfirmed(self, reserved: int, most: int) -> Usage:
        """Count a reservation as possibly billed; return the usage for at most `most` tokens."""
        for budget in self.budgets:
            budget.mark_unconfirmed(reserved, self.price)
        usd = None if self.price is None else cost_or_zero(most, self.price)
        return Usage(possibly_billed_tokens=most, possibly_billed_usd=usd)


class _Balance(NamedTuple):
    """The limits of a budget, what it has left and what was spent. The spending of a named budget may be unknown."""

    limit_usd: Decimal | None
    left_usd: Decimal | None
    limit_tokens: int | None
    left_tokens: int | None
    spent_usd: Decimal | None = None
    spent_tokens: int | None = None


def budget_error(budget: Budget, tokens: int, price: Decimal | None, what: str = "a text") -> BudgetError:
    """Return the error for a text, or a batch, of at most `tokens` tokens without room in a budget of this process."""
    balance = _Balance(budget.limit_usd, budget.left_usd, budget.limit_tokens, budget.left_tokens)
    if budget.name is None:
        balance = balance._replace(
            spent_usd=budget.used_usd, spent_tokens=budget.spent_tokens + budget.unconfirmed_tokens
        )
    return _error_of(budget.name, balance, tokens, price, what)


def shared_budget_error(status: BudgetStatus, tokens: int, price: Decimal | None, what: str = "a text") -> BudgetError:
    """Return the error for a text, or a batch, of at most `tokens` tokens without room in a named budget."""
    limit_usd, limit_tokens = status.limit
    left_usd, left_tokens = status.left
    balance = _Balance(
        None if limit_usd is None else to_usd(limit_usd),
        None if left_usd is None else to_usd(left_usd),
        limit_tokens,
        left_tokens,
        to_usd(status.used.nano_usd),
        status.used.tokens,
    )
    return _error_of(status.name, balance, tokens, price, what)


def unchecked_budget_error(name: str, reason: str) -> BudgetError:
    """Return the error for a named budget whose coordinator cannot be reached, with the reason."""
    return BudgetError(
        f"The budget {name!r} cannot be checked: {reason.rstrip('.')}. Nothing was sent.", budget_name=name
    )


def _error_of(name: str | None, balance: _Balance, tokens: int, price: Decimal | None, what: str) -> BudgetError:
    usd, left = balance.left_usd, balance.left_tokens
    title = "The budget" if name is None else f"The budget {name!r}"
    has = "has" if balance.spent_tokens is not None else "has at most"
    if usd is not None and balance.limit_usd is not None and (price is None or cost_or_zero(tokens, price) > usd):
        most = None if price is None else format_usd(cost_or_zero(tokens, price), ROUND_CEILING)
        cost = "has an unknown price" if most is None else f"may cost up to {most}"
        limit, rest = exact_decimal(balance.limit_usd), format_usd(usd, ROUND_FLOOR)
        problem = f"{title} of ${limit} {has} {rest} left, but {what} {cost}."
    else:
        most = count_noun(tokens, "token")
        problem = f"{title} of {balance.limit_tokens:,} tokens {has} {left:,} left, but {what} may need up to {most}."
    if price is None and usd is not None:
        fix = "Set prices=."
    elif name is None:
        fix = "Increase the budget and run again."
    else:
        fix = "Reset it (rag-embedkit budget reset), or use a larger one with another budget_name=."
    return BudgetError(
        f"{problem} {fix}",
        limit_usd=balance.limit_usd,
        spent_usd=balance.spent_usd,
        needed_usd=None if price is None else cost_or_zero(tokens, price),
        limit_tokens=balance.limit_tokens,
        spent_tokens=balance.spent_tokens,
        needed_tokens=tokens,
        usd_per_million=price,
        budget_name=name,
    )
