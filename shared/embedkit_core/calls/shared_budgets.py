"""Named budgets of a call: checked when it begins, opened at the coordinator before its first request."""

from __future__ import annotations

from collections.abc import Sequence

from embedkit_core.common.errors import BudgetError, ConfigurationError, safe_reason
from embedkit_core.config.coordination import check_budget_is_shared
from embedkit_core.coordination.opening import Coordination
from embedkit_core.costs.billing import unchecked_budget_error
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
