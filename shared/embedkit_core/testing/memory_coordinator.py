"""A coordinator in memory: several participants in one process, which tests can kill, stop and cut off."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from embedkit_core.common.errors import CoordinationError
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.coordination import rules
from embedkit_core.coordination.port import LEASE_SECONDS, NO_AMOUNT, Begin, End, Grant, LeaseID
from embedkit_core.coordination.rules import Claims, Hold, Lease, ModelState
from embedkit_core.coordination.sliding_window import MINUTE
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus


@dataclass(slots=True)
class _Owned:
    """A lease, and the participant that holds it."""

    owner: MemoryCoordinator
    lease: Lease


@dataclass(slots=True)
class _Shared:
    """What all participants share."""

    clock: Callable[[], float]
    lock: ForkLock = field(default_factory=ForkLock)
    salt: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    renewed: dict[MemoryCoordinator, float] = field(default_factory=dict)
    leases: dict[LeaseID, _Owned] = field(default_factory=dict)
    claimed: dict[bytes, LeaseID] = field(default_factory=dict)
    ended: dict[bytes, dict[MemoryCoordinator, float]] = field(default_factory=dict)  # when a claim ended, by its owner
    backlog: dict[tuple[str, str], dict[MemoryCoordinator, tuple[float, int, int]]] = field(default_factory=dict)
    models: dict[tuple[str, str], ModelState] = field(default_factory=dict)
    budgets: dict[str, BudgetStatus] = field(default_factory=dict)
    holds: dict[tuple[str, str], Hold] = field(default_factory=dict)


class MemoryCoordinator:
    """A participant of a coordinator in memory, for tests; pass it as `coordination=`.

    `process()` returns another participant, which is to the first as another process would be.

    Example:
        first = MemoryCoordinator()
        second = first.process()

    Attributes:
        is_reachable: False if every call of this participant fails with a CoordinationError.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = _Shared(clock)
        self.is_reachable = True

    def process(self) -> MemoryCoordinator:
        """Return another participant."""
        other = MemoryCoordinator()
        other._shared = self._shared
        return other

    def exchange(self, begins: Sequence[Begin], ends: Sequence[End]) -> list[Grant]:
        """End requests and begin others, in one atomic step. Return a grant for each of `begins`."""
        with self._transaction() as transaction:
            for one in ends:
                rules.end(transaction, one)
            return [rules.begin(transaction, one) for one in begins]

    def renew(self) -> None:
        """Keep the leases of this participant."""
        with self._transaction():
            pass

    def ended(self, leases: Collection[LeaseID]) -> Collection[LeaseID]:
        """Return those of other participants' leases that have ended or are lost."""
        with self._transaction():
            held = self._shared.leases
            return [one for one in leases if one not in held or held[one].lease.lost]

    def open_budget(self, name: str, limit: BudgetLimit) -> None:
        """Create a named budget, or check the limits of an existing one."""
        with self._transaction() as transaction:
            budget = transaction.budget(name) or BudgetStatus(name, limit)
            if not budget.has_limit:
                budget = budget._replace(limit=limit)
            rules.check_limit(budget, limit)
            transaction.save_budget(budget)

    def hold(self, hold: str, budget: str, limit: BudgetLimit, amount: Amount) -> BudgetStatus | None:
        """Reserve an upper bound in a named budget, until its final settlement. Return the budget if it has no room."""
        with self._transaction() as transaction:
            return rules.hold(transaction, hold, budget, limit, amount)

    def settle(self, hold: str, budget: str, billed: Amount, lost: Amount = NO_AMOUNT, *, is_final: bool) -> None:
        """Count what was billed so far of the work of a hold, in place of what is held."""
        with self._transaction() as transaction:
            rules.settle(transaction, hold, budget, billed, lost, is_final=is_final)

    def budgets(self) -> list[BudgetStatus]:
        """Return the named budgets."""
        with self._shared.lock.lock:
            return list(self._shared.budgets.values())

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def stop(self) -> None:
        """Count the leases of this participant as lost, as if it had been stopped for `LEASE_SECONDS`.

        Its next call shows that it runs again.
        """
        with self._shared.lock.lock:
            _Transaction(self, self._shared).lose_leases(self)

    def kill(self) -> None:
        """Forget this participant, as if its process had been killed. What it had reserved is possibly billed."""
        shared = self._shared
        with shared.lock.lock:
            self.stop()
            shared.renewed.pop(self, None)
            for key in [key for key, owned in shared.leases.items() if owned.owner is self]:
                del shared.leases[key]
            for backlog in shared.backlog.values():
                backlog.pop(self, None)

    @contextmanager
    def _transaction(self) -> Iterator[_Transaction]:
        shared = self._shared
        with shared.lock.lock:
            if not self.is_reachable:
                raise CoordinationError("The coordinator in memory is not reachable. Set is_reachable to True.")
            transaction = _Transaction(self, shared)
            shared.renewed[self] = transaction.now
            for owner, renewed_at in shared.renewed.items():
                if renewed_at + LEASE_SECONDS <= transaction.now:
                    transaction.lose_leases(owner)
            yield transaction


class _Transaction:
    """A `rules.Transaction` of one participant."""

    def __init__(self, owner: MemoryCoordinator, shared: _Shared) -> None:
        self._owner, self._shared = owner, shared
        self.now = now = shared.clock()
        self.processes = sum(at + LEASE_SECONDS > now for one, at in shared.renewed.items() if one is not owner) + 1

    def account_digest(self, begin: Begin) -> str:
        """Return the identifier of a request's account."""
        return begin.account.digest(self._shared.salt)

    def claims(self, keys: Sequence[bytes], since: float) -> Claims:
        """Return the claims of other participants."""
        shared, others, recheck = self._shared, dict[int, LeaseID](), list[int]()
        for index, key in enumerate(keys):
            lease = shared.claimed.get(key)
            if lease is not None and shared.leases[lease].owner is not self._owner:
                others[index] = lease
            elif any(at >= since for owner, at in shared.ended.get(key, {}).items() if owner is not self._owner):
                recheck.append(index)
        return Claims(others, recheck)

    def others_backlog(self, account: str, model: str) -> tuple[int, int]:
        """Return the requests and tokens that the other participants have to send."""
        notes = self._shared.backlog.get((account, model), {})
        others = [note for owner, note in notes.items() if owner is not self._owner and note[0] + MINUTE > self.now]
        return sum(requests for _, requests, _ in others), sum(tokens for _, _, tokens in others)

    def note_backlog(self, account: str, model: str, requests: int, tokens: int) -> None:
        """Store the requests and tokens that this participant has to send."""
        self._shared.backlog.setdefault((account, model), {})[self._owner] = (self.now, requests, tokens)

    def model(self, account: str, model: str) -> ModelState | None:
        """Return the state of a model, or None."""
        return self._shared.models.get((account, model))

    def save_model(self, account: str, model: str, state: ModelState) -> None:
        """Store the state of a model."""
        self._shared.models[account, model] = state

    def budget(self, name: str) -> BudgetStatus | None:
        """Return a named budget, or None."""
        return self._shared.budgets.get(name)

    def save_budget(self, budget: BudgetStatus) -> None:
        """Store a named budget."""
        self._shared.budgets[budget.name] = budget

    def hold(self, hold: str, budget: str) -> Hold | None:
        """Return a hold, or None."""
        return self._shared.holds.get((hold, budget))

    def save_hold(self, hold: str, budget: str, state: Hold | None) -> None:
        """Store a hold, or remove it."""
        self._shared.holds.pop((hold, budget), None)
        if state is not None:
            self._shared.holds[hold, budget] = state

    def add(self, lease: Lease) -> LeaseID:
        """Store a lease of this participant."""
        number = next(self._shared.numbers)
        self._shared.leases[number] = _Owned(self._owner, lease)
        self._shared.claimed.update(dict.fromkeys(lease.keys, number))
        return number

    def end(self, lease_id: LeaseID) -> Lease | None:
        """Remove a lease of this participant."""
        owned = self._shared.leases.get(lease_id)
        if owned is None or owned.owner is not self._owner:
            return None
        del self._shared.leases[lease_id]
        self._release(lease_id, owned)
        return owned.lease

    def lose_leases(self, owner: MemoryCoordinator) -> None:
        """Count the leases of a participant as lost."""
        for lease_id, owned in self._shared.leases.items():
            if owned.owner is owner and not owned.lease.lost:
                self._release(lease_id, owned)
                owned.lease = rules.lose(self, owned.lease)

    def _release(self, lease_id: LeaseID, owned: _Owned) -> None:
        """End the claims of a lease."""
        for key in owned.lease.keys:
            if self._shared.claimed.get(key) == lease_id:
                del self._shared.claimed[key]
            self._shared.ended.setdefault(key, {})[owned.owner] = self.now
