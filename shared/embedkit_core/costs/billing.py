"""Billing of a call: the price, the meters that count it, and the budgets that bound it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from embedkit_core.common.errors import BudgetError, EmbedKitError
from embedkit_core.common.formatting import format_usd
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter, TextCounts, usage_of
from embedkit_core.costs.tokens import cost_usd
from embedkit_core.costs.tracker import UsageTracker


@dataclass(frozen=True, slots=True)
class CallBilling:
    """The price of a call's tokens, the meters that count them and the budgets that bound them.

    `price` is USD per million tokens, None if it is unknown.
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
        """Return the billing of one call: the embedder's own meter and budget, and those of the active trackers."""
        meters, budgets = [meter], [budget]
        for tracker in trackers:
            meters.append(tracker.meter(model, input_type, price))
            budgets.append(tracker.budget)
        return cls(meters, price, [one for one in budgets if one is not None])

    @property
    def price_is_missing(self) -> bool:
        """True if a budget limits dollars and the price of the model is unknown."""
        return self.price is None and any(budget.limit_usd is not None for budget in self.budgets)

    def count(self, counts: TextCounts) -> None:
        """Count the outcome of the call's texts."""
        for meter in self.meters:
            meter.count(counts)

    def usage(self, counts: TextCounts) -> Usage:
        """Return the outcome of the call's texts, and what the cache hits among them saved."""
        return usage_of(counts, self.price)

    def allows(self, tokens: int) -> bool:
        """Tell whether all budgets allow so many tokens."""
        return all(budget.allows(tokens, self.price) for budget in self.budgets)

    def check(self, tokens: int) -> BudgetError | None:
        """Give the error for so many tokens, unless they may yet be paid for with what is reserved and comes back."""
        for budget in self.budgets:
            if not budget.has_reservations and not budget.allows(tokens, self.price):
                return budget_error(budget, tokens, self.price)
        return None

    def refresh_errors(self, failed: Mapping[int, EmbedKitError]) -> Mapping[int, EmbedKitError]:
        """Return the errors of texts, those of budgets with what is spent and left at the end of the call."""
        return {n: self._refresh(error) if isinstance(error, BudgetError) else error for n, error in failed.items()}

    def _refresh(self, error: BudgetError) -> BudgetError:
        """Return the error of one of these budgets with its current figures, unless the text has room by now."""
        for budget in self.budgets:
            mine = (budget.limit_usd, budget.limit_tokens) == (error.limit_usd, error.limit_tokens)
            if mine and error.needed_tokens is not None and not budget.allows(error.needed_tokens, self.price):
                return budget_error(budget, error.needed_tokens, self.price)
        return error

    def reserve(self, tokens: int) -> None:
        """Set so many tokens aside."""
        for budget in self.budgets:
            budget.reserve(tokens, self.price)

    def settle(self, reserved: int, billed: int) -> Usage:
        """Take a bill in place of what was reserved for it, and give the usage it comes to."""
        for budget in self.budgets:
            budget.settle(reserved, billed, self.price)
        if not billed:
            return Usage()
        if self.price is None:
            return Usage(tokens=billed, unpriced_tokens=billed)
        return Usage(tokens=billed, priced_usd=cost_usd(billed, self.price))

    def mark_unconfirmed(self, reserved: int, most: int) -> Usage:
        """Count what may have been billed, at `most` so many tokens, and give the usage it comes to."""
        for budget in self.budgets:
            budget.mark_unconfirmed(reserved, self.price)
        usd = None if self.price is None else cost_usd(most, self.price)
        return Usage(possibly_billed_tokens=most, possibly_billed_usd=usd)


def budget_error(budget: Budget, tokens: int, price: Decimal | None) -> BudgetError:
    """Give the error for a text of at most so many tokens that a budget does not allow."""
    usd, left = budget.left_usd, budget.left_tokens
    if usd is not None and budget.limit_usd is not None and (price is None or cost_usd(tokens, price) > usd):
        message = (
            f"of the budget of ${format_usd(budget.limit_usd)}, ${format_usd(usd)} is left, and a text may cost up to "
        )
        message += "an amount nobody knows" if price is None else f"${format_usd(cost_usd(tokens, price))}"
    else:
        message = f"of the budget of {budget.limit_tokens:,} tokens, {left:,} are left, and a text may have {tokens:,}"
    return BudgetError(
        message,
        limit_usd=budget.limit_usd,
        spent_usd=budget.spent_usd + budget.unconfirmed_usd,
        needed_usd=None if price is None else cost_usd(tokens, price),
        limit_tokens=budget.limit_tokens,
        spent_tokens=budget.spent_tokens + budget.unconfirmed_tokens,
        needed_tokens=tokens,
        usd_per_million=price,
    )
