"""The storage of the rules in a SQLite file, inside a transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence

from embedkit_core.coordination import rules
from embedkit_core.coordination.local import rows
from embedkit_core.coordination.local.mirror import Mirror, pack
from embedkit_core.coordination.local.owners import names, remove_if_dead
from embedkit_core.coordination.local.schema import ACTIVE, ENDED, LOST, REMOVED_OWNERS
from embedkit_core.coordination.local.store import Store
from embedkit_core.coordination.port import KEEP_SECONDS, MODEL_SECONDS, PREFIX_BYTES, Begin, LeaseID, ProviderAccount
from embedkit_core.coordination.sliding_window import MINUTE, SlidingWindow
from embedkit_core.costs.amounts import BudgetLimit, BudgetStatus


class LocalTransaction:
    """The storage of `rules`, inside a transaction of a store.

    Attributes:
        now: The current time.
        processes: The number of processes that have renewed their leases lately.
        owner: The ID of this process.
        owners: All other owners, by ID.
        is_new: True if this process was no owner before.
        renewed_at: Its last sign of life.
    """

    def __init__(
        self, store: Store, now: float, name: str, mirror: Mirror, digests: Callable[[ProviderAccount], str]
    ) -> None:
        """Read the owners.

        Args:
            store: The store.
            now: The current time.
            name: The name of the owner that is this process.
            mirror: The leases of other processes.
            digests: Returns the digest of an account.
        """
        self._execute = store.connection.execute
        self.now = now
        self.owners = rows.read_owners(self._execute)
        own = next((owner for owner in self.owners.values() if owner.name == name), None)
        if own is None:
            own = rows.add_owner(self._execute, name, now)
            mirror.clear()  # of what it knows, something may be this process' own
            self.is_new = True
        else:
            del self.owners[own.id]
            self.is_new = False
        self.renewed_at = own.renewed_at
        self._count_processes()
        self.owner = own.id
        self._store = store
        self._name = name
        self._mirror = mirror
        self._has_read_mirror = False
        self._packed = b""
        self._digests = digests

    def _count_processes(self) -> None:
        self.processes = 1 + sum(owner.is_running(self.now) for owner in self.owners.values())

    def account_digest(self, begin: Begin) -> str:
        """Return the identifier of a request's account."""
        return self._digests(begin.account)

    def claims(self, keys: Sequence[bytes], since: float) -> rules.Claims:
        """Return the claims of other processes on non-empty keys, without those of dead and stopped owners."""
        indexes: Sequence[int] = range(len(keys))
        if not all(keys):
            indexes = [index for index in indexes if keys[index]]
            keys = [keys[index] for index in indexes]
        self._packed = pack(keys)
        if not keys:
            return rules.Claims({}, ())
        if any(owner.horizon >= since for owner in self.owners.values()):
            return rules.Claims({}, indexes)
        self._mirror.read(self._execute, self.owner)
        self._has_read_mirror = True
        found = self._mirror.find(self._packed)
        others: dict[int, LeaseID] = {}
        recheck = []
        states = self._states(set(found.values()))
        for index, lease in found.items():
            if lease not in states:
                continue
            ended_at = states[lease]
            if ended_at is None:
                others[indexes[index]] = lease
            elif ended_at >= since:
                recheck.append(indexes[index])
        return rules.Claims(others, recheck)

    def _states(self, leases: Collection[LeaseID]) -> dict[LeaseID, float | None]:
        """Return when each lease has ended, None for an active one. Forgotten ones are left out."""
        found = rows.read_leases(self._execute, leases)
        if self.lose({owner for owner, ended_at in found.values() if ended_at is None}):
            found = rows.read_leases(self._execute, leases)
        return {lease: ended_at for lease, (_, ended_at) in found.items()}

    def lose(self, owners: Iterable[int]) -> bool:
        """Lose the leases of those owners that are dead or stopped, and remove the dead ones.

        Returns:
            True if there are any.
        """
        lost = False
        for owner in [self.owners[one] for one in owners if one in self.owners and one != REMOVED_OWNERS]:
            dead = remove_if_dead(self._store.folder, owner.name)
            if dead or not owner.is_running(self.now):
                lost = True
                self.lose_leases("owner = ?", owner.id)
            if dead:
                self.remove(owner)
        return lost

    def lose_leases(self, condition: str, *parameters: int) -> None:
        """Count the reservations of active leases as lost, and release their claims."""
        active = self._execute(
            f"SELECT id, {rows.LEASE} FROM Leases WHERE state = {ACTIVE} AND {condition}",  # noqa: S608
            parameters,
        ).fetchall()
        for lease, *columns in active:
            rules.lose(self, rows.lease_of(columns))
            self._execute("UPDATE Leases SET state = ?, ended_at = ? WHERE id = ?", (LOST, self.now, lease))

    def remove(self, owner: rows.Owner) -> None:
        """Remove an owner without active leases. The keys of ended ones are kept for a while."""
        execute = self._execute
        execute("DELETE FROM Leases WHERE owner = ? AND ended_at IS NULL", (owner.id,))
        execute("UPDATE Leases SET state = ? WHERE owner = ?", (ENDED, owner.id))
        execute("DELETE FROM Demand WHERE owner = ?", (owner.id,))
        execute("DELETE FROM Owners WHERE id = ?", (owner.id,))
        self._raise_horizon(REMOVED_OWNERS, owner.horizon)
        self.owners.pop(owner.id, None)
        self._count_processes()

    def forget(self) -> None:
        """Forget what ended a while ago. A process that looked into the cache before must look again."""
        execute = self._execute
        before = self.now - KEEP_SECONDS
        ended = execute(
            "SELECT owner, max(ended_at) FROM Leases WHERE ended_at < ? GROUP BY owner", (before,)
        ).fetchall()
        for owner, ended_at in ended:
            known = owner == self.owner or owner in self.owners
            self._raise_horizon(owner if known else REMOVED_OWNERS, ended_at)
        if ended:
            execute("DELETE FROM Leases WHERE ended_at < ? AND state = ?", (before, ENDED))
            # The owner of a lost lease may still settle it.
            execute("UPDATE Leases SET keys = x'', ended_at = NULL WHERE ended_at < ?", (before,))
        execute("DELETE FROM Models WHERE used_at < ? AND paused_until < ?", (self.now - MODEL_SECONDS, self.now))

    def _raise_horizon(self, owner: int, ended_at: float) -> None:
        self._execute("UPDATE Owners SET horizon = max(horizon, ?) WHERE id = ?", (ended_at, owner))
        if owner in self.owners:
            known = self.owners[owner]
            self.owners[owner] = known._replace(horizon=max(known.horizon, ended_at))

    def renew(self) -> None:
        """Keep the leases of this process."""
        self._execute("UPDATE Owners SET renewed_at = ? WHERE id = ?", (self.now, self.owner))

    def others_backlog(self, account: str, model: str) -> tuple[int, int]:
        """Return the requests and tokens that other live processes have to send, as noted in the last minute."""
        requests, tokens = self._execute(
            "SELECT total(requests), total(tokens) FROM Demand"
            " WHERE account = ? AND model = ? AND owner != ? AND noted_at > ?",
            (account, model, self.owner, self.now - MINUTE),
        ).fetchone()
        return int(requests), int(tokens)

    def note_backlog(self, account: str, model: str, requests: int, tokens: int) -> None:
        """Store the requests and tokens that this process has to send, in place of its last note."""
        self._execute(
            "INSERT INTO Demand VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET requests = excluded.requests,"
            " tokens = excluded.tokens, noted_at = excluded.noted_at",
            (account, model, self.owner, requests, tokens, self.now),
        )

    def model(self, account: str, model: str) -> rules.ModelState | None:
        """Return the state of a model. None if it has none: no limit and no pause was in force lately."""
        row = self._execute(
            "SELECT requests, tokens, paused_until FROM Models WHERE account = ? AND model = ?", (account, model)
        ).fetchone()
        return None if row is None else rules.ModelState(SlidingWindow(row[0]), SlidingWindow(row[1]), row[2])

    def save_model(self, account: str, model: str, state: rules.ModelState) -> None:
        """Store the state of a model."""
        self._execute(
            "INSERT OR REPLACE INTO Models VALUES (?, ?, ?, ?, ?, ?)",
            (account, model, state.requests.state(), state.tokens.state(), state.paused_until, self.now),
        )

    def budget(self, name: str) -> BudgetStatus | None:
        """Return a named budget. None if it was removed."""
        return rows.read_budget(self._execute, name)

    def save_budget(self, budget: BudgetStatus) -> None:
        """Store a named budget."""
        rows.save_budget(self._execute, budget)

    def hold(self, hold: str, budget: str) -> rules.Hold | None:
        """Return a hold in a named budget. None if there is none of that ID."""
        return rows.read_hold(self._execute, hold, budget)

    def save_hold(self, hold: str, budget: str, state: rules.Hold | None) -> None:
        """Store a hold, or remove it."""
        rows.save_hold(self._execute, hold, budget, state)

    def add(self, lease: rules.Lease) -> LeaseID:
        """Store a lease of this process."""
        has_all = PREFIX_BYTES * len(lease.keys) == len(self._packed)  # of the keys of the request
        packed = self._packed if has_all else pack(lease.keys)
        added = rows.add_lease(self._execute, self.owner, lease, packed)
        if self._has_read_mirror:
            self._mirror.skip(added)
        return added

    def end(self, lease_id: LeaseID) -> rules.Lease | None:
        """Remove a lease of this process. None if it is unknown. Its keys are kept for look-ups that began before."""
        row = self._execute(
            f"SELECT length(keys), {rows.LEASE} FROM Leases WHERE id = ? AND owner = ? AND state != {ENDED}",  # noqa: S608
            (lease_id, self.owner),
        ).fetchone()
        if row is None:
            return None
        has_keys, *columns = row
        lease = rows.lease_of(columns)
        if lease.lost:  # its keys may be forgotten
            self._raise_horizon(self.owner, self.now)
        if has_keys and not lease.lost:
            self._execute("UPDATE Leases SET state = ?, ended_at = ? WHERE id = ?", (ENDED, self.now, lease_id))
        else:
            self._execute("DELETE FROM Leases WHERE id = ?", (lease_id,))
        return lease

    def start(self, boot_id: str) -> None:
        """Remove what dead processes have left behind; after a reboot, everything but the budgets.

        Args:
            boot_id: The identifier of this run of the system, "" if it has none.
        """
        execute = self._execute
        row = execute("SELECT value FROM Meta WHERE name = 'boot'").fetchone()
        if row is not None and (row[0] != boot_id or (not boot_id and self._is_ahead())):
            self.lose_leases("owner != ?", self.owner)
            execute("DELETE FROM Leases")
            execute("DELETE FROM Owners WHERE id NOT IN (?, ?)", (REMOVED_OWNERS, self.owner))
            execute("UPDATE Owners SET horizon = -9e999")
            execute("DELETE FROM Models")
            execute("DELETE FROM Demand")
            self.owners = {}
            self._count_processes()
            self._mirror.clear()
        if row is None or row[0] != boot_id:
            execute("INSERT OR REPLACE INTO Meta VALUES ('boot', ?)", (boot_id,))
        self.lose_all()
        known = {owner.name for owner in self.owners.values()} | {self._name}
        for name in set(names(self._store.folder)) - known:
            remove_if_dead(self._store.folder, name)

    def _is_ahead(self) -> bool:
        """Return True if a stored time is in the future: the clock has started anew."""
        latest = self._execute(
            "SELECT max((SELECT coalesce(max(renewed_at), -9e999) FROM Owners WHERE id != ?),"
            " (SELECT coalesce(max(used_at), -9e999) FROM Models))",
            (self.owner,),
        ).fetchone()[0]
        return bool(latest > self.now + 1.0)

    def lose_all(self) -> None:
        """Lose the leases of all owners that are dead or stopped."""
        self.lose(list(self.owners))

    def leave(self) -> bool:
        """Remove this process. Return True if it has leases that it has not ended, and stays."""
        has_leases = self._execute(
            f"SELECT EXISTS (SELECT 1 FROM Leases WHERE owner = ? AND state != {ENDED})",  # noqa: S608
            (self.owner,),
        ).fetchone()[0]
        if not has_leases:
            self.remove(rows.read_owners(self._execute)[self.owner])
        return bool(has_leases)

    def reset_budget(self, name: str) -> BudgetStatus | None:
        """Reset what was spent of a budget, and its limits. Return it as it was, None if there is none.

        What is reserved stays: it is settled into the budget as it is then.
        """
        budget = self.budget(name)
        if budget is None:
            return None
        if budget.held == rules.NOTHING:
            self._execute("DELETE FROM Budgets WHERE name = ?", (name,))
        else:
            self.save_budget(BudgetStatus(name, BudgetLimit(), held=budget.held))
        # The reset has taken what is lost: a late settlement must not take it again.
        for lease, reserved in self._execute(
            f"SELECT id, reserved FROM Leases WHERE state = {LOST} AND reserved IS NOT NULL"  # noqa: S608
        ).fetchall():
            amounts = {key: rules.NOTHING if key == name else amount for key, amount in json.loads(reserved).items()}
            self._execute("UPDATE Leases SET reserved = ? WHERE id = ?", (json.dumps(amounts), lease))
        return budget
