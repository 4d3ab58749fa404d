"""Cases of the coordinator suite: named budgets, which all participants share."""

# ruff: noqa: D102 - test names are sentences

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from embedkit_core.coordination.port import Bill, Coordinator, End, Grant, LeaseID, Reservation
from embedkit_core.costs.amounts import Amount, BudgetLimit
from embedkit_core.testing.coordination_cases import (
    CoordinationCases,
    begin,
    cancel,
    claim,
    end,
    new_keys,
    request,
    reserve,
    status_of,
)
from embedkit_core.testing.suite import assert_rejected

NAME, LIMIT, NOTHING = "suite", BudgetLimit(1000, None), Amount()


class BudgetCases(CoordinationCases):
    """Named budgets."""

    def test_a_budget_is_opened_again_with_the_same_limit_only(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        one.open_budget(NAME, LIMIT)
        two.open_budget(NAME, LIMIT)
        for other in (BudgetLimit(999, None), BudgetLimit(None, 1000), BudgetLimit(1000, 1000)):
            assert_rejected(partial(two.open_budget, NAME, other), "another limit of an open budget is accepted")
        two.open_budget("another", BudgetLimit(None, 7))

    def test_texts_without_room_are_not_granted_and_the_others_are(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        _granted(reserve(one, NAME, LIMIT, Amount(600, 6)))
        grant = reserve(two, NAME, LIMIT, Amount(300, 3), Amount(200, 2), Amount(100, 1))
        assert grant.lease is not None
        assert list(grant.unfunded) == [1]
        assert grant.unfunded[1].name == NAME
        assert grant.unfunded[1].limit == LIMIT
        assert status_of(one, NAME, LIMIT).held == Amount(1000, 10)

    def test_a_request_without_any_room_gets_no_lease_and_claims_nothing(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        _granted(reserve(one, NAME, LIMIT, Amount(1000, 10)))
        keys = new_keys()
        grant = begin(two, request(keys, reservations=[Reservation(NAME, LIMIT, {0: Amount(1, 1)})]))
        assert grant.lease is None
        assert grant.unfunded[0].held == Amount(1000, 10)
        claim(one, keys)

    def test_a_text_that_another_participant_sends_is_not_reserved(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        keys = new_keys(2)
        claim(one, keys[:1])
        amounts = {0: Amount(900, 9), 1: Amount(900, 9)}
        grant = begin(two, request(keys, reservations=[Reservation(NAME, LIMIT, amounts)]))
        assert list(grant.others) == [0]
        assert not grant.unfunded
        assert status_of(one, NAME, LIMIT).held == amounts[1]

    def test_a_limit_in_tokens_is_kept(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        limit = BudgetLimit(None, 10)
        one.open_budget(NAME, limit)
        _granted(reserve(one, NAME, limit, Amount(10**15, 6)))
        assert reserve(two, NAME, limit, Amount(1, 5)).lease is None
        _granted(reserve(two, NAME, limit, Amount(1, 4)))

    def test_a_text_with_two_budgets_is_reserved_in_both_or_in_none(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        small = BudgetLimit(500, None)
        one.open_budget("small", small)
        reservations = [
            Reservation(NAME, LIMIT, {0: Amount(400, 1), 1: Amount(300, 1)}),
            Reservation("small", small, {0: Amount(400, 1), 1: Amount(300, 1)}),
        ]
        grant = begin(two, request(new_keys(2), reservations=reservations))
        assert {index: budget.name for index, budget in grant.unfunded.items()} == {1: "small"}
        assert status_of(one, NAME, LIMIT).held == status_of(one, "small", small).held == Amount(400, 1)

    def test_a_bill_replaces_the_reservation(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        lease = _granted(reserve(one, NAME, LIMIT, Amount(300, 3), Amount(300, 3)))
        end(one, lease, bills={NAME: Bill(Amount(250, 2), Amount(100, 1))})
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.lost, status.held) == (Amount(250, 2), Amount(100, 1), NOTHING)
        assert reserve(two, NAME, LIMIT, Amount(651, 1)).lease is None
        _granted(reserve(two, NAME, LIMIT, Amount(650, 1)))

    def test_a_reservation_without_a_bill_is_released(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        cancel(one, _granted(reserve(one, NAME, LIMIT, Amount(600, 6))))
        end(one, _granted(reserve(one, NAME, LIMIT, Amount(600, 6))))
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.lost, status.held) == (NOTHING, NOTHING, NOTHING)

    def test_a_bill_is_settled_once(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        lease = _granted(reserve(one, NAME, LIMIT, Amount(300, 3)))
        for coordinator in (one, one, two):
            end(coordinator, lease, bills={NAME: Bill(Amount(300, 3))})
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.held) == (Amount(300, 3), NOTHING)

    def test_a_settled_bill_makes_room_for_a_request_of_the_same_exchange(self, tmp_path: Path) -> None:
        one, _ = self._open(tmp_path)
        lease = _granted(reserve(one, NAME, LIMIT, Amount(1000, 10)))
        following = request(new_keys(), reservations=[Reservation(NAME, LIMIT, {0: Amount(900, 9)})])
        [grant] = one.exchange([following], [End(lease, time.monotonic(), bills={NAME: Bill(Amount(100, 1))})])
        assert grant.lease is not None

    def test_requests_of_one_exchange_do_not_share_a_reservation(self, tmp_path: Path) -> None:
        one, _ = self._open(tmp_path)
        reservations = [Reservation(NAME, LIMIT, {0: Amount(600, 6)})]
        grants = one.exchange([request(new_keys(), reservations=reservations) for _ in range(2)], [])
        assert [grant.lease is None for grant in grants] == [False, True]

    def test_amounts_add_up_exactly(self, tmp_path: Path) -> None:
        one, two = self.make(tmp_path), self.make(tmp_path)
        limit = BudgetLimit(10**15 + 1, None)  # a million USD
        one.open_budget(NAME, limit)
        end(one, _granted(reserve(one, NAME, limit, Amount(10**15, 0))), bills={NAME: Bill(Amount(10**15, 0))})
        assert reserve(two, NAME, limit, Amount(2, 0)).lease is None
        _granted(reserve(two, NAME, limit, Amount(1, 0)))

    def test_concurrent_participants_do_not_exceed_a_budget(self, tmp_path: Path) -> None:
        self._open(tmp_path)

        def run(number: int) -> int:
            one, spent = self.make(tmp_path), 0
            for n in range(40):
                grant = reserve(one, NAME, LIMIT, Amount(30 + number + n, 1))
                if grant.lease is None:
                    continue
                assert grant.unfunded == {}
                billed = 0 if n % 4 == 0 else 11 + number
                spent += billed
                end(one, grant.lease, bills={NAME: Bill(Amount(billed, 1))})
            one.close()
            return spent

        with ThreadPoolExecutor(3) as pool:
            spent = sum(pool.map(run, range(3)))
        last = self.make(tmp_path)
        status = status_of(last, NAME, LIMIT)
        assert (status.spent.nano_usd, status.lost, status.held) == (spent, NOTHING, NOTHING)
        assert 0 < spent <= 1000
        # What the others left is usable, and not more than that.
        assert reserve(last, NAME, LIMIT, Amount(1001 - spent, 1)).lease is None
        if spent < 1000:
            _granted(reserve(last, NAME, LIMIT, Amount(1000 - spent, 1)))

    # Holds

    def test_a_hold_is_reserved_once_for_all_participants(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        for coordinator in (one, one, two):
            assert coordinator.hold("batch", NAME, LIMIT, Amount(600, 6)) is None
        status = status_of(two, NAME, LIMIT)
        assert (status.held, status.holds, status.left.nano_usd) == (Amount(600, 6), Amount(600, 6), 400)
        lease = _granted(reserve(two, NAME, LIMIT, Amount(400, 4)))
        status = status_of(one, NAME, LIMIT)
        assert (status.held, status.holds) == (Amount(1000, 10), Amount(600, 6))
        cancel(two, lease)

    def test_a_hold_without_room_is_refused_with_the_status_of_its_budget(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        assert one.hold("first", NAME, LIMIT, Amount(600, 6)) is None
        status = two.hold("second", NAME, LIMIT, Amount(401, 1))
        assert status is not None
        assert (status.name, status.limit, status.held) == (NAME, LIMIT, Amount(600, 6))
        assert two.hold("second", NAME, LIMIT, Amount(400, 1)) is None
        assert one.hold("third", NAME, LIMIT, Amount(1, 1)) is not None

    def test_the_same_id_in_two_budgets_is_two_holds(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        one.open_budget("small", BudgetLimit(500, None))
        assert one.hold("batch", NAME, LIMIT, Amount(600, 6)) is None
        assert one.hold("batch", "small", BudgetLimit(500, None), Amount(600, 6)) is not None
        assert one.hold("batch", "small", BudgetLimit(500, None), Amount(500, 5)) is None
        two.settle("batch", "small", NOTHING, is_final=True)
        assert status_of(two, NAME, LIMIT).holds == Amount(600, 6)
        assert status_of(two, "small", BudgetLimit(500, None)).holds == NOTHING

    def test_what_is_new_in_the_bill_of_a_hold_is_spent(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        one.hold("batch", NAME, LIMIT, Amount(600, 6))
        for coordinator, billed in ((one, Amount(100, 1)), (two, Amount(250, 2)), (one, Amount(100, 1))):
            coordinator.settle("batch", NAME, billed, is_final=False)
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.lost) == (Amount(250, 2), NOTHING)
        assert (status.held, status.holds) == (Amount(350, 4), Amount(350, 4))

    def test_a_final_settlement_releases_the_rest_and_nothing_changes_afterwards(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        one.hold("batch", NAME, LIMIT, Amount(600, 6))
        one.settle("batch", NAME, Amount(250, 2), is_final=False)
        for coordinator in (one, two):
            coordinator.settle("batch", NAME, Amount(300, 3), Amount(20, 2), is_final=True)
        two.settle("batch", NAME, Amount(900, 9), is_final=False)
        assert two.hold("batch", NAME, LIMIT, Amount(600, 6)) is None
        status = status_of(one, NAME, LIMIT)
        assert (status.spent, status.lost) == (Amount(300, 3), Amount(20, 2))
        assert (status.held, status.holds) == (NOTHING, NOTHING)

    def test_a_hold_that_has_cost_nothing_is_forgotten(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        two.settle("batch", NAME, NOTHING, is_final=True)
        for _ in range(2):
            assert one.hold("batch", NAME, LIMIT, Amount(600, 6)) is None
            assert status_of(two, NAME, LIMIT).holds == Amount(600, 6)
            two.settle("batch", NAME, NOTHING, is_final=True)
        status = status_of(one, NAME, LIMIT)
        assert (status.spent, status.lost, status.held, status.holds) == (NOTHING, NOTHING, NOTHING, NOTHING)

    def test_a_bill_above_a_hold_or_without_one_is_spent_all_the_same(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        one.hold("batch", NAME, LIMIT, Amount(600, 6))
        lease = _granted(reserve(two, NAME, LIMIT, Amount(100, 1)))
        one.settle("batch", NAME, Amount(700, 5), is_final=False)
        one.settle("unknown", NAME, Amount(50, 5), is_final=False)
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.held, status.holds) == (Amount(750, 10), Amount(100, 2), Amount(0, 1))
        one.settle("batch", NAME, Amount(800, 7), is_final=True)
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.held, status.holds) == (Amount(850, 12), Amount(100, 1), NOTHING)
        end(two, lease)

    def test_a_hold_outlives_a_killed_participant(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        one.hold("batch", NAME, LIMIT, Amount(600, 6))
        _granted(reserve(one, NAME, LIMIT, Amount(100, 1)))
        self.kill(one)
        status = status_of(two, NAME, LIMIT)
        assert (status.lost, status.held, status.holds) == (Amount(100, 1), Amount(600, 6), Amount(600, 6))
        two.settle("batch", NAME, Amount(500, 5), is_final=True)
        assert status_of(two, NAME, LIMIT).spent == Amount(500, 5)

    # Lost leases

    def test_the_reservations_of_a_killed_participant_count_as_possibly_billed(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        _granted(reserve(one, NAME, LIMIT, Amount(600, 6)))
        lease = _granted(reserve(two, NAME, LIMIT, Amount(100, 1)))
        self.kill(one)
        status = status_of(two, NAME, LIMIT)
        assert (status.lost, status.held) == (Amount(600, 6), Amount(100, 1))
        end(two, lease, bills={NAME: Bill(Amount(90, 1))})
        assert status_of(two, NAME, LIMIT).spent == Amount(90, 1)

    def test_a_late_bill_of_a_stopped_participant_replaces_what_was_possibly_billed(self, tmp_path: Path) -> None:
        one, two = self._open(tmp_path)
        lease = _granted(reserve(one, NAME, LIMIT, Amount(600, 6)))
        self.stop(one)
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.lost, status.held) == (NOTHING, Amount(600, 6), NOTHING)
        for _ in range(2):
            end(one, lease, bills={NAME: Bill(Amount(500, 5), Amount(10, 1))})
        status = status_of(two, NAME, LIMIT)
        assert (status.spent, status.lost, status.held) == (Amount(500, 5), Amount(10, 1), NOTHING)

    def _open(self, folder: Path) -> tuple[Coordinator, Coordinator]:
        """Return two participants with an open budget."""
        one, two = self.make(folder), self.make(folder)
        one.open_budget(NAME, LIMIT)
        return one, two


def _granted(grant: Grant) -> LeaseID:
    """Return the lease of a request, all of whose texts must be granted."""
    assert grant.lease is not None
    assert not grant.unfunded
    return grant.lease
