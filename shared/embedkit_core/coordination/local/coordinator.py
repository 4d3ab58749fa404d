"""Coordinator of the processes on one machine, in a SQLite file beside the cache."""

from __future__ import annotations

import sqlite3
import sys
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from embedkit_core.cache.disk.connections import FORK_BARRIER, again_after_fork, close_all, close_in_finalizer
from embedkit_core.common.errors import CacheError, CoordinationError
from embedkit_core.common.fork_safety import ForkLock, register_after_fork
from embedkit_core.coordination import rules
from embedkit_core.coordination.local import owners, rows
from embedkit_core.coordination.local.mirror import Mirror
from embedkit_core.coordination.local.store import Store, error_for, open_store
from embedkit_core.coordination.local.transaction import LocalTransaction
from embedkit_core.coordination.port import NO_AMOUNT, Begin, End, Grant, LeaseID, ProviderAccount
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus

RENEW_AFTER_SECONDS = 1.0  # so that not every request writes a sign of life
FORGET_EVERY_SECONDS = 1.0
CHECK_EVERY_SECONDS = 0.5  # for dead owners that hold reservations

# Of files and folders; the others are those of values that a damaged file holds.
_FAILURES = (OSError, sqlite3.Error, CacheError, LookupError, OverflowError, TypeError, ValueError)
T = TypeVar("T")


class _Resources:
    """What is closed when a coordinator is gone.

    Attributes:
        guard: Held while they are used. Lock order: FORK_BARRIER, guard.
        connections: The connection, if it is open.
        lock: The lock file of this process, if it has one.
    """

    def __init__(self) -> None:
        self.guard = ForkLock()
        self.connections: list[sqlite3.Connection] = []
        self.lock: owners.OwnerLock | None = None


class LocalCoordinator:
    """A coordinator of all processes that use a folder, which is created on first use.

    Each process is an owner with a lock file. What it holds is lost when it dies, or if it is stopped for
    `LEASE_SECONDS`. After a reboot all leases are lost and all limits start anew; budgets are kept.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a coordinator without opening anything.

        Args:
            folder: The coordination folder.
            clock: A clock that all processes of the machine share, and that is never set.
        """
        self._folder = folder
        self._clock = clock
        self._store: Store | None = None
        self._is_forked = False
        self._resources = _Resources()
        self._mirror = Mirror()
        self._digests: weakref.WeakKeyDictionary[ProviderAccount, str] = weakref.WeakKeyDictionary()
        self._owner = 0
        self._forget_at = self._check_at = float("-inf")
        self._awaited: dict[LeaseID, int | None] = {}  # the owner of each lease, None if it has ended
        self._awaited_owners: dict[int, rows.Owner] = {}
        self._data_version = -1
        register_after_fork(self)
        # Not at exit, where it would come before the engine has ended its requests and closed the coordinator.
        weakref.finalize(self, _release, self._resources).atexit = False

    def exchange(self, begins: Sequence[Begin], ends: Sequence[End]) -> list[Grant]:
        """End requests and begin others, in one transaction. Return a grant for each of `begins`."""
        return self._run(lambda store: self._exchange(store, begins, ends))

    def renew(self) -> None:
        """Keep the leases of this process."""
        if self._resources.lock is not None:
            self._run(self._renew)

    def ended(self, leases: Collection[LeaseID]) -> Collection[LeaseID]:
        """Return those of other processes' leases that have ended or are lost."""
        return self._run(lambda store: self._ended(store, leases))

    def open_budget(self, name: str, limit: BudgetLimit) -> None:
        """Create a named budget, or check the limits of an existing one.

        Raises:
            ConfigurationError: It exists with other limits.
        """
        limit = rows.storable(limit)
        rules.check_limit(self._run(lambda store: self._open_budget(store, name, limit)), limit)

    def hold(self, hold: str, budget: str, limit: BudgetLimit, amount: Amount) -> BudgetStatus | None:
        """Reserve an upper bound in a named budget, until its final settlement. Return the budget if it has no room."""
        limit = rows.storable(limit)

        def work(store: Store) -> BudgetStatus | None:
            with store.transaction(durable=True):
                return rules.hold(self._begin(store), hold, budget, limit, amount)

        return self._run(work)

    def settle(self, hold: str, budget: str, billed: Amount, lost: Amount = NO_AMOUNT, *, is_final: bool) -> None:
        """Count what was billed so far of the work of a hold, in place of what is held."""

        def work(store: Store) -> None:
            with store.transaction(durable=True):
                rules.settle(self._begin(store), hold, budget, billed, lost, is_final=is_final)

        self._run(work)

    def budgets(self) -> list[BudgetStatus]:
        """Return all named budgets, by name. Nothing is created."""
        return self._run(self._read_budgets, create=False) or []

    def reset_budget(self, name: str) -> BudgetStatus | None:
        """Reset what was spent of a named budget, and its limits, which its next user sets.

        Returns:
            The budget as it was. None if there is none of that name.
        """
        return self._run(lambda store: self._reset_budget(store, name), create=False)

    def close(self) -> None:
        """Close connections and files. The next call opens them again. Leases that have not ended are kept."""
        with FORK_BARRIER.entered(), self._resources.guard.lock:
            keep_lock = False
            try:
                keep_lock = self._leave()
            except (*_FAILURES, CoordinationError):
                pass  # others see by the lock that it is gone
            finally:
                self._drop()
                if self._resources.lock is not None and not keep_lock:
                    self._resources.lock.release()
                    self._resources.lock = None

    def after_fork_in_child(self) -> None:
        """Become an owner of its own, with none of the parent's leases."""
        if self._resources.lock is not None:
            self._resources.lock.close()
            self._resources.lock = None
        self._resources.connections.clear()  # the fork has closed them, or they must stay open
        self._is_forked = True  # what a signal handler has interrupted must not find its data changed

    def __repr__(self) -> str:
        return f"LocalCoordinator({str(self._folder)!r})"

    def _run(self, work: Callable[[Store], T], *, create: bool = True) -> T:
        """Return what some work on the store returns; None if there is no store and `create` is False."""
        with FORK_BARRIER.entered(), self._resources.guard.lock:
            done = False
            try:
                result = self._attempt(work, create)
                done = True
                return result
            except _FAILURES as error:
                raise error_for(error, self._folder) from error
            finally:
                if not done:
                    self._drop()  # rolls back

    @again_after_fork
    def _attempt(self, work: Callable[[Store], T], create: bool) -> T:
        store = self._opened(create)
        return work(store) if store is not None else None  # type: ignore[return-value]

    def _opened(self, create: bool) -> Store | None:
        if self._is_forked or (self._store is not None and not self._store.is_current):
            self._drop()
        if self._store is None:
            self._store = open_store(self._folder, create=create)
            if self._store is not None:
                self._resources.connections.append(self._store.connection)
        return self._store

    def _drop(self) -> None:
        """Close the store, and forget what was read from it."""
        close_all(self._resources.connections)
        self._is_forked = False
        self._store = None
        self._mirror.clear()
        self._digests.clear()
        self._awaited.clear()
        self._data_version = -1

    def _begin(self, store: Store) -> LocalTransaction:
        """Return the storage of the rules, for this process as an owner. Call it inside a transaction."""
        lock = self._resources.lock
        if lock is None or not lock.is_held:
            if lock is not None:
                lock.close()
            lock = self._resources.lock = owners.OwnerLock(self._folder)
        transaction = LocalTransaction(store, self._clock(), lock.name, self._mirror, self._digest)
        if transaction.is_new:
            transaction.start(boot_id())
        self._owner = transaction.owner
        self._awaited.clear()  # this transaction may change them
        return transaction

    def _digest(self, account: ProviderAccount) -> str:
        digest = self._digests.get(account)
        if digest is None:
            assert self._store is not None
            digest = self._digests[account] = account.digest(self._store.salt)
        return digest

    def _exchange(self, store: Store, begins: Sequence[Begin], ends: Sequence[End]) -> list[Grant]:
        self._mirror.refresh(store.execute, self._owner)
        money = any(begin.reservations for begin in begins) or any(end.bills for end in ends)
        with store.transaction(durable=money):
            transaction = self._begin(store)
            now = transaction.now
            for end in ends:
                rules.end(transaction, end)
            grants = [rules.begin(transaction, begin) for begin in begins]
            if now >= transaction.renewed_at + RENEW_AFTER_SECONDS:
                transaction.renew()
            if now >= self._forget_at:
                transaction.forget()
                self._forget_at = now + FORGET_EVERY_SECONDS
            # What dead owners hold of a budget is lost: requests that wait for it must not wait longer.
            refused = [budget for grant in grants for budget in grant.unfunded.values()]
            if now >= self._check_at and any(budget.held != budget.holds for budget in refused):
                transaction.lose_all()
                self._check_at = now + CHECK_EVERY_SECONDS
        return grants

    def _renew(self, store: Store) -> None:
        lock = self._resources.lock
        if lock is not None:
            store.execute("UPDATE Owners SET renewed_at = ? WHERE name = ?", (self._clock(), lock.name))

    def _ended(self, store: Store, leases: Collection[LeaseID]) -> list[LeaseID]:
        version = store.execute("PRAGMA data_version").fetchone()[0]
        if version != self._data_version:
            self._awaited.clear()
        unknown = [lease for lease in leases if lease not in self._awaited]
        if unknown:
            self._read_awaited(store, unknown)
        self._data_version = version
        awaited = {self._awaited[lease] for lease in leases} - {None}
        suspects = [owner for owner in awaited if owner is not None and not self._is_alive(owner)]
        if suspects:
            with store.transaction(durable=False):
                self._begin(store).lose(suspects)
            self._read_awaited(store, leases)
        return [lease for lease in leases if self._awaited[lease] is None]

    def _read_awaited(self, store: Store, leases: Collection[LeaseID]) -> None:
        found = rows.read_leases(store.execute, leases)
        for lease in leases:
            owner, ended_at = found.get(lease, (0, 0.0))
            self._awaited[lease] = owner if ended_at is None else None
        self._awaited_owners = rows.read_owners(store.execute)

    def _is_alive(self, owner: int) -> bool:
        known = self._awaited_owners.get(owner)
        return (
            known is not None
            and known.is_running(self._clock())
            and not owners.remove_if_dead(self._folder, known.name)
        )

    def _open_budget(self, store: Store, name: str, limit: BudgetLimit) -> BudgetStatus:
        """Return a budget, with the limits that are in force."""
        budget = rows.read_budget(store.execute, name)
        if budget is not None and budget.has_limit:
            return budget
        with store.transaction(durable=True):
            budget = rows.read_budget(store.execute, name) or BudgetStatus(name, BudgetLimit())
            if not budget.has_limit:
                budget = budget._replace(limit=limit)
                rows.save_budget(store.execute, budget)
        return budget

    def _read_budgets(self, store: Store) -> list[BudgetStatus]:
        budgets = rows.read_budgets(store.execute)
        if any(budget.held != budget.holds for budget in budgets):
            with store.transaction(durable=False):
                self._begin(store).lose_all()
            budgets = rows.read_budgets(store.execute)
        return budgets

    def _reset_budget(self, store: Store, name: str) -> BudgetStatus | None:
        with store.transaction(durable=True):
            transaction = self._begin(store)
            transaction.lose_all()
            return transaction.reset_budget(name)

    def _leave(self) -> bool:
        """Remove this process as an owner. Return True if it has leases, and stays."""
        if self._resources.lock is None:
            return False
        store = self._opened(create=False)
        if store is None:
            return False
        with store.transaction(durable=False):
            return self._begin(store).leave()


def _release(resources: _Resources) -> None:
    """Close what a coordinator has left open. Others see by the lock that its owner is gone."""
    if not resources.guard.lock.acquire(blocking=False):
        return  # a thread uses it while the interpreter ends
    try:
        close_in_finalizer(resources.connections)
        if resources.lock is not None:
            resources.lock.release()
            resources.lock = None
    finally:
        resources.guard.lock.release()


def boot_id() -> str:
    """Return the identifier of this run of the system. "" if it has none."""
    if sys.platform != "linux":
        return ""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
