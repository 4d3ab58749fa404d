"""How a call is paid for and counted: its price, the embedder's meter and budget, and those of the caller's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from embedkit_core.engine.budget import Budget
from embedkit_core.engine.purse import Purse
from embedkit_core.errors import BudgetError, EmbedKitError
from embedkit_core.meter import Counts, Meter, counted
from embedkit_core.tracking import UsageTracker
from embedkit_core.types import InputType, Usage

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder


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
