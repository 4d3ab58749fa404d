"""The rows of a coordination database."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

from embedkit_core.coordination.local.schema import ACTIVE, LOST
from embedkit_core.coordination.port import LEASE_SECONDS, LeaseID
from embedkit_core.coordination.rules import Hold, Lease
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus

LEASE = "account, model, permit_at, permit_tokens, reserved, state"  # the columns that `lease_of` reads
_HOLDS = "(SELECT coalesce(sum({0}), 0) FROM Holds WHERE budget = name AND is_ended = 0)"
_BUDGET = (
    "name, usd, tokens, spent_usd, spent_tokens, lost_usd, lost_tokens, held_usd, held_tokens, "
    f"{_HOLDS.format('Holds.held_usd')}, {_HOLDS.format('Holds.held_tokens')}"
)
_MAX_INTEGER = 2**63 - 1
_IDS_PER_SELECT = 500  # SQLite may be built with a limit of 999 parameters


class Execute(Protocol):
    """A function that executes a statement."""

    def __call__(self, statement: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor:
        """Return the cursor."""
        ...


class Owner(NamedTuple):
    """A process.

    Attributes:
        id: Its ID.
        name: The name of its lock file.
        renewed_at: Its last sign of life.
        horizon: When the last of its forgotten leases ended.
    """

    id: int
    name: str
    renewed_at: float
    horizon: float

    def is_running(self, now: float) -> bool:
        """Return False if it is stopped, or idle."""
        return self.renewed_at >= now - LEASE_SECONDS


def read_owners(execute: Execute) -> dict[int, Owner]:
    """Return all owners, by ID."""
    return {row[0]: Owner(*row) for row in execute("SELECT id, name, renewed_at, horizon FROM Owners")}


def add_owner(execute: Execute, name: str, now: float) -> Owner:
    """Add an owner and return it."""
    added = execute("INSERT INTO Owners (name, renewed_at, horizon) VALUES (?, ?, -9e999)", (name, now)).lastrowid
    assert added is not None
    return Owner(added, name, now, float("-inf"))


def add_lease(execute: Execute, owner: int, lease: Lease, prefixes: bytes) -> int:
    """Add an active lease and return its ID."""
    reserved = json.dumps(lease.reserved) if lease.reserved else None
    added = execute(
        f"INSERT INTO Leases (owner, {LEASE}, keys) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
        (owner, lease.account, lease.model, lease.permit_at, lease.permit_tokens, reserved, ACTIVE, prefixes),
    ).lastrowid
    assert added is not None
    return added


def lease_of(columns: Sequence[Any]) -> Lease:
    """Return the lease with the columns `LEASE`, without its keys."""
    account, model, permit_at, permit_tokens, reserved, state = columns
    amounts = {name: Amount(*amount) for name, amount in json.loads(reserved).items()} if reserved else {}
    return Lease(account, model, (), permit_at, permit_tokens, amounts, state == LOST)


def read_leases(execute: Execute, leases: Collection[LeaseID]) -> dict[LeaseID, tuple[int, float | None]]:
    """Return the owner of each existing lease and when it ended, None for an active one."""
    found: dict[LeaseID, tuple[int, float | None]] = {}
    ids = list(leases)
    for start in range(0, len(ids), _IDS_PER_SELECT):
        block = ids[start : start + _IDS_PER_SELECT]
        marks = ",".join("?" * len(block))
        for lease, owner, state, ended_at in execute(
            f"SELECT id, owner, state, ended_at FROM Leases WHERE id IN ({marks})",  # noqa: S608
            block,
        ):
            # A lost lease whose keys are forgotten has no time: the horizon stands for it.
            found[lease] = (owner, None if state == ACTIVE else float("-inf") if ended_at is None else ended_at)
    return found


def read_budget(execute: Execute, name: str) -> BudgetStatus | None:
    """Return a named budget. None if there is none of that name."""
    row = execute(f"SELECT {_BUDGET} FROM Budgets WHERE name = ?", (name,)).fetchone()  # noqa: S608
    return None if row is None else _budget_of(row)


def read_budgets(execute: Execute) -> list[BudgetStatus]:
    """Return all named budgets, by name."""
    return [_budget_of(row) for row in execute(f"SELECT {_BUDGET} FROM Budgets ORDER BY name")]  # noqa: S608


def save_budget(execute: Execute, budget: BudgetStatus) -> None:
    """Store a named budget. The sum of its holds is not stored: it is that of their rows."""
    name, limit, *amounts, _ = budget
    numbers = [number for pair in (limit, *amounts) for number in pair]
    stored = [None if number is None else min(number, _MAX_INTEGER) for number in numbers]
    execute("INSERT OR REPLACE INTO Budgets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (name, *stored))


def storable(limit: BudgetLimit) -> BudgetLimit:
    """Return limits as they are stored: at most the largest integer of SQLite."""
    return BudgetLimit(*(None if number is None else min(number, _MAX_INTEGER) for number in limit))


def _budget_of(row: Sequence[Any]) -> BudgetStatus:
    name, usd, tokens, *amounts = row
    spent, lost, held, holds = (Amount(*amounts[at : at + 2]) for at in (0, 2, 4, 6))
    return BudgetStatus(name, BudgetLimit(usd, tokens), spent, lost, held, holds)


def read_hold(execute: Execute, hold: str, budget: str) -> Hold | None:
    """Return a hold in a named budget. None if there is none of that ID."""
    row = execute(
        "SELECT held_usd, held_tokens, billed_usd, billed_tokens, is_ended FROM Holds WHERE id = ? AND budget = ?",
        (hold, budget),
    ).fetchone()
    return None if row is None else Hold(Amount(*row[:2]), Amount(*row[2:4]), bool(row[4]))


def save_hold(execute: Execute, hold: str, budget: str, state: Hold | None) -> None:
    """Store a hold, or remove it."""
    if state is None:
        execute("DELETE FROM Holds WHERE id = ? AND budget = ?", (hold, budget))
        return
    stored = [min(number, _MAX_INTEGER) for number in (*state.held, *state.billed)]
    execute("INSERT OR REPLACE INTO Holds VALUES (?, ?, ?, ?, ?, ?, ?)", (hold, budget, *stored, state.is_ended))
