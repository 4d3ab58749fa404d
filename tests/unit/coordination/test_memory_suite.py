"""The coordinator in memory passes the suite for coordinators, and fails on demand."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from embedkit_core.common.errors import CoordinationError
from embedkit_core.coordination import rules
from embedkit_core.coordination.port import LEASE_SECONDS
from embedkit_core.coordination.rules import Claims, Hold
from embedkit_core.costs.amounts import BudgetStatus
from embedkit_core.testing import CoordinationSuite, MemoryCoordinator
from embedkit_core.testing.coordination_cases import begin, claim, new_keys, request
from embedkit_core.testing.memory_coordinator import _Transaction
from embedkit_core.testing.suite import suite_tests


class TestMemoryCoordinator(CoordinationSuite):
    @pytest.fixture(autouse=True)
    def shared(self):
        self.first = MemoryCoordinator()

    def make(self, folder):
        return self.first.process()

    def kill(self, coordinator):
        coordinator.kill()

    def stop(self, coordinator):
        coordinator.stop()


def test_a_participant_that_is_not_reachable_fails_until_it_is():
    one, keys = MemoryCoordinator(), new_keys()
    two, lease = one.process(), claim(one, keys)
    one.is_reachable = False
    for call in (one.renew, lambda: one.exchange([], []), lambda: one.ended([lease])):
        with pytest.raises(CoordinationError):
            call()
    assert dict(begin(two, request(keys)).others) == {0: lease}
    one.is_reachable = True
    one.renew()


def test_leases_that_are_not_renewed_are_lost():
    now = 1000.0
    one, keys = MemoryCoordinator(lambda: now), new_keys()
    two = one.process()
    lease, kept = claim(one, keys), claim(two, new_keys())
    now += 0.6 * LEASE_SECONDS
    two.renew()
    assert list(two.ended([lease])) == []
    now += 0.6 * LEASE_SECONDS
    assert list(two.ended([lease, kept])) == [lease]
    assert begin(two, request(keys, since=now - 1)).recheck == [0]


def test_a_suite_without_kill_and_stop_skips_the_tests_that_need_them(tmp_path):
    class Suite(CoordinationSuite):
        coordinators: ClassVar = defaultdict(MemoryCoordinator)

        def make(self, folder):
            return self.coordinators[folder].process()

    cases = [name for name in suite_tests(Suite) if "killed" in name or "stopped" in name]
    assert len(cases) == 5
    for case in cases:
        with pytest.raises(pytest.skip.Exception):
            getattr(Suite(), case)(tmp_path / case)


def first_failure(folder: Path) -> str | None:
    """Return the first test of the suite that MemoryCoordinator fails."""
    for name, test in suite_tests(TestMemoryCoordinator).items():
        suite = TestMemoryCoordinator()
        suite.first = MemoryCoordinator()
        try:
            getattr(suite, name)(*([folder] if "tmp_path" in test.__annotations__ else []))
        except AssertionError:
            return name
    return None


CLAIMS, HOLD, SAVE_HOLD = _Transaction.claims, _Transaction.hold, _Transaction.save_hold
DEFECTS = [
    (_Transaction, "claims", lambda self, keys, since: Claims({}, CLAIMS(self, keys, since).recheck)),
    (_Transaction, "claims", lambda self, keys, since: Claims(CLAIMS(self, keys, since).others, [])),
    (_Transaction, "claims", lambda self, keys, since: CLAIMS(self, keys, 0.0)),
    (_Transaction, "others_backlog", lambda self, account, model: (0, 0)),
    (_Transaction, "note_backlog", lambda self, account, model, requests, tokens: None),
    (_Transaction, "account_digest", lambda self, begin: ""),
    (rules, "_permit_wait", lambda *arguments: 0.0),
    (rules, "_correct_permit", lambda *arguments: None),
    (rules, "MAX_WAIT_AHEAD", 100.0),
    (rules, "_settle", lambda budget, lease, reserved, bill: budget),
    (rules, "lose", lambda transaction, lease: replace(lease, lost=True)),
    (BudgetStatus, "allows", lambda self, amount: True),
    (rules, "hold", lambda transaction, key, name, limit, amount: None),
    (rules, "settle", lambda transaction, key, name, billed, lost, *, is_final: None),
    (_Transaction, "hold", lambda self, hold, budget: None),
    (_Transaction, "hold", lambda self, hold, budget: HOLD(self, "one", budget)),
    (_Transaction, "hold", lambda self, hold, budget: HOLD(self, hold, "one")),
    (_Transaction, "save_hold", lambda self, hold, budget, state: SAVE_HOLD(self, hold, budget, state or Hold())),
    (MemoryCoordinator, "ended", lambda self, leases: []),
    (MemoryCoordinator, "ended", lambda self, leases: leases),
    (MemoryCoordinator, "open_budget", lambda self, name, limit: None),
    (MemoryCoordinator, "kill", lambda self: None),
]


@pytest.mark.parametrize(
    ("owner", "name", "defect"), DEFECTS, ids=[f"{n}-{name}" for n, (_, name, _) in enumerate(DEFECTS)]
)
def test_the_suite_finds_a_defect(owner, name, defect, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, defect)
    assert first_failure(tmp_path)


def test_the_suite_finds_nothing_in_an_intact_coordinator(tmp_path):
    assert first_failure(tmp_path) is None
