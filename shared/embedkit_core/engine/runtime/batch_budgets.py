"""Budgets of this process for a batch: reserved and settled on the engine's thread, which alone changes budgets.

Named budgets are left out: the coordinator holds those, since a batch outlives its process (`calls/shared_budgets.py`).
"""

from __future__ import annotations

from dataclasses import replace

from embedkit_core.common.errors import BudgetError
from embedkit_core.common.usage import Usage
from embedkit_core.costs.billing import THE_BATCH, CallBilling, budget_error
from embedkit_core.engine.runtime.process import engine


def reserve_batch(billing: CallBilling, tokens: int) -> BudgetError | None:
    """Reserve a batch in all budgets of this process, or in none. Return the error of one that has no room."""
    budgets, reserved = billing.own_budgets, list[bool]()
    if not budgets:
        return None

    def reserve() -> BudgetError | None:
        for budget in budgets:
            if not budget.allows(tokens, billing.price):
                return budget_error(budget, tokens, billing.price, THE_BATCH)
        for budget in budgets:
            budget.hold(tokens, billing.price)
        reserved.append(True)
        return None

    def undo() -> None:
        if reserved:
            for budget in budgets:
                budget.settle(budget.end_hold(tokens), 0, billing.price)

    running = engine()
    try:
        return running.run(reserve)
    except BaseException:  # an interrupt: it may have run, or run later
        running.post(undo)
        raise


def settle_batch(billing: CallBilling, reserved: int, billed: int, lost: int = 0) -> Usage:
    """Replace a part of a batch's reservation by its bill.

    Args:
        billing: The billing of the batch, with its price.
        reserved: The reserved tokens to release. Less is released if this process has reserved less.
        billed: The billed tokens.
        lost: The tokens that were possibly billed besides.

    Returns:
        The usage.
    """
    budgets, price = billing.own_budgets, billing.price

    def settle() -> None:
        for budget in budgets:
            budget.settle(budget.end_hold(reserved), billed, price)
            if lost:
                budget.reserve(lost, price)
                budget.mark_unconfirmed(lost, price)

    if budgets:
        engine().run(settle)
    unlimited = replace(billing, budgets=())
    usage = unlimited.settle(0, billed)
    return usage + unlimited.mark_unconfirmed(0, lost) if lost else usage
