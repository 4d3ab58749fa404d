"""Coordinators whose budgets tests see."""

import itertools
import threading
import time
from pathlib import Path
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.opening import LOCAL_FOLDER
from embedkit_core.coordination.port import NO_AMOUNT, Grant
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus


class LoneCoordinator:
    """Grants everything, and notes on which thread each budget was opened and whether it was closed."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.limits: dict[str, BudgetLimit] = {}
        self.opened: list[tuple[str, threading.Thread]] = []
        self.is_closed = False
        self.failure = failure
        self._leases = itertools.count()

    def exchange(self, begins: Any, ends: Any) -> list[Grant]:
        return [Grant(next(self._leases)) for _ in begins]

    def renew(self) -> None:
        pass

    def ended(self, leases: Any) -> Any:
        return leases

    def open_budget(self, name: str, limit: BudgetLimit) -> None:
        self.opened.append((name, threading.current_thread()))
        if self.failure is not None:
            raise self.failure
        if self.limits.setdefault(name, limit) != limit:
            raise ConfigurationError(f"budget_name: {name!r} exists with another budget")

    def hold(self, hold: str, budget: str, limit: BudgetLimit, amount: Amount) -> BudgetStatus | None:
        raise AssertionError("no test holds anything here")

    def settle(self, hold: str, budget: str, billed: Amount, lost: Amount = NO_AMOUNT, *, is_final: bool) -> None:
        raise AssertionError("no test holds anything here")

    def close(self) -> None:
        self.is_closed = True


def settled_budget(cache_folder: Path) -> BudgetStatus:
    """Return the only budget of a cache folder once its requests in flight are settled."""
    coordinator = LocalCoordinator(cache_folder / LOCAL_FOLDER)
    until = time.monotonic() + 20
    while True:
        [budget] = coordinator.budgets()
        if budget.held == Amount() or time.monotonic() > until:
            coordinator.close()
            return budget
        time.sleep(0.01)
