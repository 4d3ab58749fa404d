"""The conformance suite for coordinators."""

from __future__ import annotations

from embedkit_core.testing.coordination_budgets import BudgetCases
from embedkit_core.testing.coordination_claims import ClaimCases
from embedkit_core.testing.coordination_limits import LimitCases


class CoordinationSuite(ClaimCases, LimitCases, BudgetCases):
    """Tests that every coordinator must pass. Subclass it in a test file::

        class TestAcmeCoordinator(CoordinationSuite):
            def make(self, folder):
                return AcmeCoordinator(f"acme://{folder}")

    Each call of `make` returns another participant, which is to the others as another process would be. Define the
    methods `kill(coordinator)` and `stop(coordinator)` to run the tests that need them. No test waits for a lease to be
    lost or for a minute to pass.
    """
