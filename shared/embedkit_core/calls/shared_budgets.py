"""Named budgets of a call: checked when it begins, opened at the coordinator before its first request.

Those of a batch are held at the coordinator under the ID of the batch, and settled by any process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from embedkit_core.common.errors import BudgetError, ConfigurationError, CoordinationError, safe_reason
from embedkit_core.config.coordination import check_budget_is_shared
from embedkit_core.coordination.opening import Coordination
from embedkit_core.coordination.port import NO_AMOUNT
from embedkit_core.costs.amounts import Amount, amount_of
from embedkit_core.costs.billing import THE_BATCH, CallBilling, shared_budget_error, unchecked_budget_error
from embedkit_core.costs.budget import Budget


def check_budgets(budgets: Sequence[Budget], coordination: Coordination | None) -> None:
    """Check that all named budgets can be used with a coordination. Nothing is opened.

    Raises:
        ConfigurationError: There is no coordination, or a budget is used with another one.
    """
    for budget in budgets:
        if budget.name is not None:
            check_budget_is_shared(budget, coordination)


def unopened(budgets: Sequence[Budget]) -> list[Budget]:
    """Return the named budgets that were not opened yet."""
    return [budget for budget in budgets if budget.name is not None and budget.coordinator is None]


def open_budgets(budgets: Sequence[Budget], coordination: Coordination | None) -> BudgetError | None:
    """Open the named budgets that were not opened yet. It may block.

    Returns:
        The error of a budget whose coordinator cannot be reached, None if all are open.

    Raises:
        ConfigurationError: A budget exists with other limits.
    """
    for budget in unopened(budgets):
        assert budget.name is not None
        assert coordination is not None
        try:
            coordination.handle.open().open_budget(budget.name, budget.limit)
        except ConfigurationError:
            raise
        except Exception as error:  # the message of a user's coordinator may contain anything
            return unchecked_budget_error(budget.name, safe_reason(error))
        budget.coordinator = coordination.handle
    return None


def hold_budgets(billing: CallBilling, coordination: Coordination | None, hold: str, tokens: int) -> BudgetError | None:
    """Hold the upper bound of a batch in all named budgets of its billing, or in none. It may block.

    Args:
        billing: The billing, with the price of the batch.
        coordination: The coordination of its embedder.
        hold: The ID of the batch. A repeated call with it holds nothing more.
        tokens: The upper bound.

    Returns:
        The error of a budget without room, or whose coordinator cannot be reached. If it could not be reached for the
        release either, the caller must settle the batch later, with nothing billed.

    Raises:
        ConfigurationError: A budget exists with other limits.
    """
    check_budgets(billing.budgets, coordination)
    refusal = open_budgets(billing.budgets, coordination)
    if refusal is not None or coordination is None:
        return refusal
    amount, asked = amount_of(tokens, billing.price), list[str]()
    for name, budget in billing.named_budgets.items():
        asked.append(name)
        try:
            full = coordination.handle.open().hold(hold, name, budget.limit, amount)
        except Exception as error:  # the message of a user's coordinator may contain anything
            refusal = unchecked_budget_error(name, safe_reason(error))
        else:
            refusal = None if full is None else shared_budget_error(full, tokens, billing.price, THE_BATCH)
        if refusal is not None:
            with contextlib.suppress(CoordinationError):
                settle_budgets(asked, coordination, hold, NO_AMOUNT, is_final=True)
            return refusal
    return None


def settle_budgets(
    names: Iterable[str],
    coordination: Coordination,
    hold: str,
    billed: Amount,
    lost: Amount = NO_AMOUNT,
    *,
    is_final: bool,
) -> None:
    """Settle what a batch holds in named budgets, with its total bill so far. It may block, and may be repeated.

    Args:
        names: The names of the budgets.
        coordination: The coordination in which they were held.
        hold: The ID of the batch.
        billed: What was billed in total so far.
        lost: What was possibly billed besides, in a final settlement.
        is_final: True to release the rest.

    Raises:
        CoordinationError: A budget cannot be reached. The others are settled.
    """
    reasons: dict[str, str] = {}
    for name in names:
        try:
            coordination.handle.open().settle(hold, name, billed, lost, is_final=is_final)
        except Exception as error:  # as above
            reasons[name] = safe_reason(error).rstrip(".")
    if reasons:
        problems = "; ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
        raise CoordinationError(f"What a batch has cost cannot be counted in its named budgets ({problems}).")
