"""Who pays for a call: the price, the meters that count it, and the budgets that bound it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from embedkit_core.common.errors import BudgetError, EmbedKitError
from embedkit_core.common.formatting import dollars
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import Usage
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Counts, Meter, counted
from embedkit_core.costs.tokens import usd_of
from embedkit_core.costs.tracker import UsageTracker

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Purse:
    """What a caller pays with; `price` is USD per million tokens, None where it is unknown."""

    meters: Sequence[Meter] = ()
    price: Decimal | None = None
    budgets: Sequence[Budget] = ()

    def admits(self, tokens: int) -> bool:
        """Tell whether all budgets allow so many tokens."""
        return all(budget.admits(tokens, self.price) for budget in self.budgets)

    def refusal(self, tokens: int) -> BudgetError | None:
        """Give the error for so many tokens, unless they may yet be paid for with what is reserved and comes back."""
        for budget in self.budgets:
            if not budget.waits and not budget.admits(tokens, self.price):
                return budget_error(budget, tokens, self.price)
        return None

    def restated(self, error: BudgetError) -> BudgetError:
        """Give the error of one of these budgets as it stands by now, unless the text could be paid for by now."""
        for budget in self.budgets:
            mine = (budget.limit_usd, budget.limit_tokens) == (error.limit_usd, error.limit_tokens)
            if mine and error.needed_tokens is not None and not budget.admits(error.needed_tokens, self.price):
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
        return Usage(tokens=billed, priced_usd=usd_of(billed, self.price))

    def lose(self, reserved: int, most: int) -> Usage:
        """Count what may have been billed, at `most` so many tokens, and give the usage it comes to."""
        for budget in self.budgets:
            budget.lose(reserved, self.price)
        usd = None if self.price is None else usd_of(most, self.price)
        return Usage(possibly_billed_tokens=most, possibly_billed_usd=usd)


def budget_error(budget: Budget, tokens: int, price: Decimal | None) -> BudgetError:
    """Give the error for a text of at most so many tokens that a budget does not allow."""
    usd, left = budget.left_usd, budget.left_tokens
    if usd is not None and budget.limit_usd is not None and (price is None or usd_of(tokens, price) > usd):
        message = f"of the budget of ${dollars(budget.limit_usd)}, ${dollars(usd)} is left, and a text may cost up to "
        message += "an amount nobody knows" if price is None else f"${dollars(usd_of(tokens, price))}"
    else:
        message = f"of the budget of {budget.limit_tokens:,} tokens, {left:,} are left, and a text may have {tokens:,}"
    return BudgetError(
        message,
        limit_usd=budget.limit_usd,
        spent_usd=budget.spent_usd + budget.lost_usd,
        needed_usd=None if price is None else usd_of(tokens, price),
        limit_tokens=budget.limit_tokens,
        spent_tokens=budget.spent_tokens + budget.lost_tokens,
        needed_tokens=tokens,
        usd_per_million=price,
    )


class Payment:
    """What one call pays with, and where it is counted; `trackers` are those of the blocks that its caller is in."""

    __slots__ = ("_budgets", "_meters", "_price")

    def __init__(self, owner: Embedder, input_type: InputType, trackers: tuple[UsageTracker, ...]) -> None:
        price = self._price = owner.price.usd_per_million
        self._meters: list[Meter] = [owner.meter]
        self._budgets: list[Budget] = [] if owner.budget is None else [owner.budget]
        for tracker in trackers:
            self._meters.append(tracker.meter(owner.model, input_type, price))
            if tracker.budget is not None:
                self._budgets.append(tracker.budget)

    @property
    def purse(self) -> Purse:
        """What the engine pays with."""
        return Purse(self._meters, self._price, self._budgets)

    def restated(self, failed: Mapping[int, EmbedKitError]) -> Mapping[int, EmbedKitError]:
        """Give the errors of texts, those of budgets with what is spent and left at the end of the call."""
        purse = self.purse
        return {n: purse.restated(e) if isinstance(e, BudgetError) else e for n, e in failed.items()}

    @property
    def is_blind(self) -> bool:
        """Tell whether dollars are bounded and nobody knows how many a text costs."""
        return self._price is None and any(budget.limit_usd is not None for budget in self._budgets)

    def count(self, counts: Counts) -> None:
        """Count what became of the texts of the call."""
        for meter in self._meters:
            meter.count(counts)

    def usage(self, counts: Counts) -> Usage:
        """Give what became of the texts of the call, and what the hits among them saved."""
        return counted(counts, self._price)
