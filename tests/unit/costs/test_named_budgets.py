"""Named budgets: limits in integers, errors, and what is refused before anything is sent."""

from decimal import Decimal

import pytest
from support.rows import check_rows

from embedkit_core import ConfigurationError, track_usage
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from embedkit_core.costs.billing import CallBilling, budget_error, shared_budget_error
from embedkit_core.costs.budget import Budget

PRICE = Decimal(1_000_000)  # one dollar per token


def test_a_limit_in_usd_is_rounded_down_to_a_nano_usd():
    assert Budget(Decimal("0.0000000019"), 5).limit == BudgetLimit(1, 5)
    assert Budget(Decimal(10**9)).limit == BudgetLimit(10**18, None)


def test_the_limit_of_a_named_budget_applies_here_to_reservations_only():
    """Other processes spend too, and the spending may be reset: only the coordinator counts it."""
    budget = Budget(Decimal(10), 10, "ingest")
    budget.reserve(8, PRICE)
    assert not budget.allows(3, PRICE)
    budget.settle(8, 8, PRICE)
    budget.reserve(5, PRICE)
    budget.mark_unconfirmed(5, PRICE)
    assert budget.allows(10, PRICE)
    assert not budget.allows(11, PRICE)
    assert (budget.spent_tokens, budget.unconfirmed_tokens) == (8, 5)


def test_the_error_of_a_named_budget_has_the_amounts_of_all_processes():
    status = BudgetStatus("ingest", BudgetLimit(5 * 10**9, 1000), Amount(10**9, 100), Amount(1, 0), Amount(10**9, 50))
    error = shared_budget_error(status, 4, PRICE)
    assert str(error) == (
        "The budget 'ingest' of $5 has $2.999999999 left, but a text may cost up to $4. Reset it (rag-embedkit budget "
        "reset), or use a larger one with another budget_name=."
    )
    assert (error.budget_name, error.limit_usd, error.spent_usd) == ("ingest", 5, Decimal("1.000000001"))
    assert (error.limit_tokens, error.spent_tokens, error.needed_tokens) == (1000, 100, 4)
    error = shared_budget_error(status, 900, None)
    assert "has an unknown price. Set prices=." in str(error)
    error = shared_budget_error(status, 900, Decimal(1))
    assert "of 1,000 tokens has 850 left, but a text may need up to 900 tokens" in str(error)


def test_the_error_of_a_text_above_a_named_budget_claims_no_spending():
    error = budget_error(Budget(None, 10, "ingest"), 11, None)
    assert "The budget 'ingest' of 10 tokens has at most 10 left, but a text" in str(error)
    assert (error.spent_usd, error.spent_tokens) == (None, None)


def test_the_amounts_of_a_named_budget_are_not_replaced_by_those_of_a_budget_here():
    error = shared_budget_error(BudgetStatus("ingest", BudgetLimit(None, 10), Amount(0, 5)), 6, None)
    budgets = [Budget(None, 10), Budget(None, 10, "ingest")]
    for budget in budgets:
        budget.reserve(9, None)
    assert CallBilling((), None, budgets).refresh_errors({0: error}) == {0: error}


def test_an_invalid_name_of_a_budget_is_refused():
    def check(value):
        with pytest.raises(ConfigurationError, match="budget_name: must be a string of 1 to 100 printable characters"):
            track_usage(budget_usd=1, budget_name=value)

    check_rows(["", "a\nb", "x" * 101, 1, True, b"name", "\ud800"], check)


def test_a_name_without_a_budget_is_refused():
    with pytest.raises(ConfigurationError, match=r"budget_name: has no budget \(got 'ingest'\)\. Set budget_usd="):
        track_usage(budget_name="ingest")
