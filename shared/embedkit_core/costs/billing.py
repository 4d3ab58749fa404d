"""Billing of a call: its price, meters and budgets. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from embedkit_core.common.errors import BudgetError, EmbedKitError
from embedkit_core.common.formatting import count_noun, format_usd
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter, TextCounts, usage_of
from embedkit_core.costs.tokens import cost_or_zero
from embedkit_core.costs.tracker import UsageTracker


@dataclass(slots=True)
class CallBilling:
    """The price of a call's tokens, the meters that count them and the budgets that limit them.

    Attributes:
        meters: Meters of the embedder and of the active trackers.
        price: USD per million tokens. None if unknown.
        budgets: Budgets of the embedder and of the active trackers.
    """

    meters: Sequence[Meter] = ()
    price: Decimal | None = None
    budgets: Sequence[Budget] = ()

    @classmethod
    def of_call(
        cls,
        meter: Meter,
        budget: Budget | None,
        price: Decimal | None,
        trackers: Sequence[UsageTracker],
        *,
        model: str,
        input_type: InputType,
    ) -> CallBilling:
        """Return the billing for the embedder's meter and budget, and those of the active trackers."""
        meters = [meter]
        budgets = [] if budget is None else [budget]
        for tracker in trackers:
            meters.append(tracker.meter(model, input_type, price))
            if tracker.budget is not None:
                budgets.append(tracker.budget)
        return cls(meters, price, budgets)

    @property
    def price_is_missing(self) -> bool:
        """True if a budget limits USD and the price of the model is unknown."""
        return self.price is None and any(budget.limit_usd is not None for budget in self.budgets)

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
        """Return the errors of texts, with current amounts in the budget errors."""
        return {n: self._refresh(error) if isinstance(error, BudgetError) else error for n, error in failed.items()}

    def _refresh(self, error: BudgetError) -> BudgetError:
        """Return the error with current amounts, or unchanged if the budget has room for the text by now."""
        for budget in self.budgets:
            same = (budget.limit_usd, budget.limit_tokens) == (error.limit_usd, error.limit_tokens)
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


def budget_error(budget: Budget, tokens: int, price: Decimal | None) -> BudgetError:
    """Return the error for a text of at most `tokens` tokens that does not fit into a budget."""
    usd, left = budget.left_usd, budget.left_tokens
    if usd is not None and budget.limit_usd is not None and (price is None or cost_or_zero(tokens, price) > usd):
        cost = "has an unknown price" if price is None else f"may cost up to ${format_usd(cost_or_zero(tokens, price))}"
        problem = f"The budget of ${format_usd(budget.limit_usd)} has ${format_usd(usd)} left, but a text {cost}."
    else:
        most = count_noun(tokens, "token")
        problem = f"The budget of {budget.limit_tokens:,} tokens has {left:,} left, but a text may need up to {most}."
    fix = "Set prices=." if price is None and usd is not None else "Increase the budget and run again."
    return BudgetError(
        f"{problem} {fix}",
        limit_usd=budget.limit_usd,
        spent_usd=budget.used_usd,
        needed_usd=None if price is None else cost_or_zero(tokens, price),
        limit_tokens=budget.limit_tokens,
        spent_tokens=budget.spent_tokens + budget.unconfirmed_tokens,
        needed_tokens=tokens,
        usd_per_million=price,
    )
