"""Holds of batches in named budgets: resets, calls that find the budget held, and the budgets of a billing."""

from dataclasses import replace
from decimal import Decimal

import pytest
from support import redis_coordinators
from support.embedders import fake_embedder

from embedkit_core import BudgetError, ConfigurationError
from embedkit_core.calls.shared_budgets import hold_budgets, settle_budgets
from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.opening import Coordination, handle_of
from embedkit_core.coordination.port import ProviderAccount
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.budget import Budget
from embedkit_core.testing import FakeServer, MemoryCoordinator

LIMIT, NOTHING = BudgetLimit(1000, None), Amount()


@pytest.fixture(params=["local", "redis"])
def coordinator(request, folder):
    if request.param == "local":
        return LocalCoordinator(folder)
    return redis_coordinators.coordinator(request.getfixturevalue("redis"))


def test_a_hold_stays_when_its_budget_is_reset_and_is_settled_into_the_new_one(coordinator):
    coordinator.open_budget("ingest", LIMIT)
    coordinator.hold("batch", "ingest", LIMIT, Amount(600, 6))
    coordinator.settle("batch", "ingest", Amount(200, 2), is_final=False)
    before = coordinator.reset_budget("ingest")
    assert before == BudgetStatus("ingest", LIMIT, Amount(200, 2), NOTHING, Amount(400, 4), Amount(400, 4))
    larger = BudgetLimit(5000, None)
    coordinator.open_budget("ingest", larger)
    assert coordinator.budgets() == [BudgetStatus("ingest", larger, held=Amount(400, 4), holds=Amount(400, 4))]
    coordinator.settle("batch", "ingest", Amount(500, 5), is_final=True)
    assert coordinator.budgets() == [BudgetStatus("ingest", larger, Amount(300, 3))]


def test_what_is_billed_after_a_reset_that_removed_the_budget_is_counted(coordinator):
    coordinator.open_budget("ingest", LIMIT)
    coordinator.hold("batch", "ingest", LIMIT, Amount(600, 6))
    coordinator.settle("batch", "ingest", Amount(600, 6), is_final=False)
    coordinator.reset_budget("ingest")
    assert coordinator.budgets() == []
    coordinator.settle("batch", "ingest", Amount(700, 7), is_final=True)
    coordinator.open_budget("ingest", LIMIT)
    assert coordinator.budgets() == [BudgetStatus("ingest", LIMIT, Amount(100, 1))]


def test_a_call_does_not_wait_for_a_budget_that_a_batch_holds():
    mine = MemoryCoordinator()
    embedder = fake_embedder(FakeServer(), coordination=mine, budget_tokens=100, budget_name="ingest")
    assert mine.hold("batch", "ingest", BudgetLimit(None, 100), Amount(0, 100)) is None
    with pytest.raises(BudgetError, match="The budget 'ingest' of 100 tokens has 0 left"):
        embedder.embed(["a text"])
    mine.settle("batch", "ingest", NOTHING, is_final=True)
    assert embedder.embed(["a text"]).usage.sent == 1


class Unreachable(MemoryCoordinator):
    """Cannot be reached for one budget."""

    def hold(self, hold, budget, limit, amount):
        super().hold(hold, budget, limit, amount)
        if budget == "second":
            raise ValueError("hunter2")


def billing_of(*budgets):
    return CallBilling((), Decimal(1_000_000), budgets)  # one dollar per token


def coordination_of(coordinator):
    return Coordination(handle_of(coordinator), ProviderAccount("fake", ""))


def test_a_batch_is_held_in_all_named_budgets_of_its_billing_and_settled_in_them():
    mine = MemoryCoordinator()
    billing = billing_of(Budget(None, 5), Budget(Decimal(10), None, "usd"), Budget(None, 10, "tokens"))
    coordination = coordination_of(mine)
    for _ in range(2):
        assert hold_budgets(billing, coordination, "batch", 8) is None
    held = Amount(8 * 10**9, 8)
    assert [(budget.name, budget.holds) for budget in mine.budgets()] == [("usd", held), ("tokens", held)]
    settle_budgets(billing.named_budgets, coordination, "batch", Amount(3 * 10**9, 3), is_final=False)
    assert {(budget.spent, budget.holds) for budget in mine.budgets()} == {(Amount(3 * 10**9, 3), Amount(5 * 10**9, 5))}
    settle_budgets(billing.named_budgets, coordination, "batch", Amount(4 * 10**9, 4), Amount(1, 1), is_final=True)
    assert {(budget.spent, budget.lost, budget.held) for budget in mine.budgets()} == {
        (Amount(4 * 10**9, 4), Amount(1, 1), NOTHING)
    }


@pytest.mark.parametrize(
    ("second", "coordinator", "message"),
    [
        (7, MemoryCoordinator, "budget 'second' of 7 tokens has 7 left, but the batch may need up to 8 tokens. Reset"),
        (9, Unreachable, r"budget 'second' cannot be checked: ValueError\. Nothing was sent"),
    ],
)
def test_a_batch_that_one_named_budget_refuses_is_held_in_none(second, coordinator, message):
    mine, first = coordinator(), Budget(None, 10, "first")
    billing = billing_of(first, Budget(None, second, "second"))
    refusal = hold_budgets(billing, coordination_of(mine), "batch", 8)
    assert isinstance(refusal, BudgetError)
    assert refusal.budget_name == "second"
    with pytest.raises(BudgetError, match=message):
        raise refusal
    assert {budget.held for budget in mine.budgets()} == {NOTHING}
    assert hold_budgets(replace(billing, budgets=[first]), coordination_of(mine), "batch", 8) is None


def test_a_bill_that_cannot_be_counted_names_its_budgets():
    mine = MemoryCoordinator()
    mine.is_reachable = False
    with pytest.raises(CoordinationError, match=r"named budgets \('ingest': The coordinator in memory is not reach"):
        settle_budgets(["ingest"], coordination_of(mine), "batch", NOTHING, is_final=True)
    with pytest.raises(ConfigurationError, match="budget_name: needs a coordinator"):
        hold_budgets(billing_of(Budget(None, 10, "ingest")), None, "batch", 8)
    assert hold_budgets(billing_of(Budget(None, 1)), None, "batch", 8) is None
