"""The decisions of a coordinator: claims, permits and reservations, in one step for each request. No I/O.

A coordinator that runs in Python implements `Transaction` over its storage. What a transaction reads and writes must be
atomic for the other processes.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.coordination.port import MAX_WAIT_AHEAD, NO_AMOUNT, Begin, Bill, End, Grant, LeaseID
from embedkit_core.coordination.sliding_window import Demand, MinuteUsage
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus

NOTHING, NO_BILL = NO_AMOUNT, Bill()


class Claims(NamedTuple):
    """The claims of other processes on the texts of a request, by index.

    Attributes:
        others: Texts that another process is sending, with its lease.
        recheck: Texts that another process has sent since their look-up, or may have.
    """

    others: Mapping[int, LeaseID]
    recheck: Collection[int]


@dataclass(slots=True)
class ModelState(MinuteUsage):
    """The rate limits of one model of an account.

    Attributes:
        paused_until: The end of a pause that the provider asked for.
    """

    paused_until: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Lease:
    """What a request holds until its end.

    Attributes:
        account: The digest of the account.
        model: The model.
        keys: The keys of the texts it claims.
        permit_at: The time at which its permit was granted for; None if no limit was in force.
        permit_tokens: The tokens of the permit.
        reserved: The reservations, by the name of the budget.
        lost: True if it was counted as lost, because its owner did not renew it.
    """

    account: str
    model: str
    keys: Sequence[bytes] = ()
    permit_at: float | None = None
    permit_tokens: int = 0
    reserved: Mapping[str, Amount] = field(default_factory=dict)
    lost: bool = False


class Hold(NamedTuple):
    """A reservation in a named budget that belongs to no process.

    Attributes:
        held: What is still reserved.
        billed: What was billed so far.
        is_ended: True after its final settlement.
    """

    held: Amount = NOTHING
    billed: Amount = NOTHING
    is_ended: bool = False


class Transaction(Protocol):
    """The storage of a coordinator, inside a transaction.

    Attributes:
        now: The current time.
        processes: The number of processes that share the coordinator.
    """

    now: float
    processes: int

    def account_digest(self, begin: Begin) -> str:
        """Return the identifier of a request's account."""
        ...

    def claims(self, keys: Sequence[bytes], since: float) -> Claims:
        """Return the claims of other processes on non-empty keys, without those of dead owners."""
        ...

    def others_backlog(self, account: str, model: str) -> tuple[int, int]:
        """Return the requests and tokens that other live processes have to send, as noted in the last minute."""
        ...

    def note_backlog(self, account: str, model: str, requests: int, tokens: int) -> None:
        """Store the requests and tokens that this process has to send, in place of its last note."""
        ...

    def model(self, account: str, model: str) -> ModelState | None:
        """Return the state of a model. None if it has none: no limit and no pause was in force lately."""
        ...

    def save_model(self, account: str, model: str, state: ModelState) -> None:
        """Store the state of a model."""
        ...

    def budget(self, name: str) -> BudgetStatus | None:
        """Return a named budget. None if it was removed."""
        ...

    def save_budget(self, budget: BudgetStatus) -> None:
        """Store a named budget."""
        ...

    def hold(self, hold: str, budget: str) -> Hold | None:
        """Return a hold in a named budget. None if there is none of that ID."""
        ...

    def save_hold(self, hold: str, budget: str, state: Hold | None) -> None:
        """Store a hold for good, until None removes it."""
        ...

    def add(self, lease: Lease) -> LeaseID:
        """Store a lease of this process."""
        ...

    def end(self, lease_id: LeaseID) -> Lease | None:
        """Remove a lease of this process. None if it is unknown. Its keys are kept for look-ups that began before."""
        ...


def begin(transaction: Transaction, request: Begin) -> Grant:
    """Claim what no other process sends, reserve its budget and its permit. Return what was granted."""
    found = transaction.claims(request.keys, request.since)
    mine: Sequence[int] = range(len(request.keys))
    if taken := {*found.others, *found.recheck}:
        mine = [index for index in mine if index not in taken]
    budgets, reserved, unfunded = _reserve(transaction, request, mine)
    if unfunded:
        mine = [index for index in mine if index not in unfunded]
    keys, tokens = request.keys, request.tokens
    if len(mine) < len(keys):  # else copying them would take as long as everything else
        keys, tokens = [keys[index] for index in mine], [tokens[index] for index in mine]
    grant = Grant(None, 0.0, found.others, found.recheck, unfunded, processes=transaction.processes)
    if not mine:
        return grant
    account = transaction.account_digest(request)
    permit_tokens = sum(tokens)
    state = _model_state(transaction, request, account)
    wait = paused = 0.0
    if state is not None:
        paused = max(0.0, state.paused_until - transaction.now)
        wait = max(paused, _permit_wait(transaction, request, account, state, permit_tokens))
        is_granted = wait <= MAX_WAIT_AHEAD
        if any(request.limits):  # what is granted counts as used, and no longer as backlog
            left = request.backlog_requests - is_granted, request.backlog_tokens - is_granted * permit_tokens
            transaction.note_backlog(account, request.model, max(0, left[0]), max(0, left[1]))
        if not is_granted:
            return replace(grant, wait=wait, paused=paused)
        state.take(permit_tokens, transaction.now + wait, transaction.now)
        transaction.save_model(account, request.model, state)
    for budget in budgets.values():
        transaction.save_budget(budget)
    permit_at = None if state is None else transaction.now + wait
    lease = transaction.add(Lease(account, request.model, list(filter(None, keys)), permit_at, permit_tokens, reserved))
    return replace(grant, lease=lease, wait=wait, paused=paused)


def end(transaction: Transaction, request: End) -> None:
    """Settle the bills of a request, correct its permit and release its claims."""
    lease = transaction.end(request.lease)
    if lease is None:
        return
    for name, reserved in lease.reserved.items():
        budget = transaction.budget(name)
        if budget is not None:
            transaction.save_budget(_settle(budget, lease, reserved, request.bills.get(name, NO_BILL)))
    if lease.permit_at is None and not request.pause:
        return
    state = transaction.model(lease.account, lease.model) or ModelState()
    if request.pause:
        state.paused_until = max(state.paused_until, transaction.now + request.pause)
    if lease.permit_at is not None:
        _correct_permit(state, lease, lease.permit_at, request, transaction.now)
    transaction.save_model(lease.account, lease.model, state)


def hold(transaction: Transaction, key: str, name: str, limit: BudgetLimit, amount: Amount) -> BudgetStatus | None:
    """Reserve an amount in a named budget under an ID, once. Return the budget if it has no room."""
    if transaction.hold(key, name) is not None:
        return None
    budget = _usable_budget(transaction, name, limit)
    if not budget.allows(amount):
        return budget
    transaction.save_hold(key, name, Hold(amount))
    transaction.save_budget(budget._replace(held=budget.held.plus(amount), holds=budget.holds.plus(amount)))
    return None


def settle(transaction: Transaction, key: str, name: str, billed: Amount, lost: Amount, *, is_final: bool) -> None:
    """Count what is new in the bill of a hold as spent, and release as much; all that is left if it is final."""
    known = transaction.hold(key, name) or Hold()
    if known.is_ended:
        return
    lost = lost if is_final else NOTHING
    new = billed.beyond(known.billed)
    left = NOTHING if is_final else known.held.beyond(new)
    released, total = known.held.minus(left), known.billed.plus(new)
    before = transaction.budget(name) or BudgetStatus(name, BudgetLimit())
    budget = before._replace(
        spent=before.spent.plus(new),
        lost=before.lost.plus(lost),
        held=before.held.beyond(released),
        holds=before.holds.beyond(released),
    )
    if budget != before:
        transaction.save_budget(budget)
    # One that has cost something is kept: a repeated settlement must not count it again.
    is_empty = left == total == lost == NOTHING
    transaction.save_hold(key, name, None if is_empty else Hold(left, total, is_final))


def check_limit(budget: BudgetStatus, limit: BudgetLimit) -> None:
    """Raise a ConfigurationError if a named budget has another limit."""
    if budget.limit != limit:
        raise ConfigurationError(
            f"budget_name: {budget.name!r} exists with a budget of {budget.limit} (got {limit}). Pass the same "
            f"amount or another name, or reset it with: rag-embedkit budget reset {shlex.quote(budget.name)}"
        )


def _settle(budget: BudgetStatus, lease: Lease, reserved: Amount, bill: Bill) -> BudgetStatus:
    """Return a budget with a bill instead of a reservation, which may be counted as lost already."""
    if lease.lost:
        budget = budget._replace(lost=budget.lost.beyond(reserved))  # less was lost if the budget was reset meanwhile
    else:
        budget = budget._replace(held=budget.held.minus(reserved))
    return budget._replace(spent=budget.spent.plus(bill.billed), lost=budget.lost.plus(bill.lost))


def lose(transaction: Transaction, lease: Lease) -> Lease:
    """Count the reservations of a lease as possibly billed, since its owner is dead or stopped. Return it as lost."""
    for name, reserved in lease.reserved.items():
        budget = transaction.budget(name)
        if budget is not None:
            transaction.save_budget(budget._replace(held=budget.held.minus(reserved), lost=budget.lost.plus(reserved)))
    return replace(lease, keys=(), lost=True)


def _reserve(
    transaction: Transaction, request: Begin, mine: Sequence[int]
) -> tuple[dict[str, BudgetStatus], dict[str, Amount], dict[int, BudgetStatus]]:
    """Reserve each text in all of its budgets, or in none.

    Returns:
        The budgets with the reservations, what is reserved in each, and the first budget without room for a text.
    """
    budgets: dict[str, BudgetStatus] = {}
    reserved: dict[str, Amount] = {}
    unfunded: dict[int, BudgetStatus] = {}
    if not request.reservations:
        return budgets, reserved, unfunded
    for reservation in request.reservations:
        budgets[reservation.budget] = _usable_budget(transaction, reservation.budget, reservation.limit)
    totals: dict[str, Amount] = {}
    for name, _, amounts in request.reservations:
        paid = [amounts[index] for index in mine if index in amounts]
        total = Amount(sum([amount.nano_usd for amount in paid]), sum([amount.tokens for amount in paid]))
        totals[name] = totals.get(name, NOTHING).plus(total)
    if all(budgets[name].allows(total) for name, total in totals.items()):  # far faster than text by text
        held = {name: budgets[name]._replace(held=budgets[name].held.plus(total)) for name, total in totals.items()}
        return held, {name: total for name, total in totals.items() if total != NOTHING}, unfunded
    for index in mine:
        parts: dict[str, Amount] = {}
        for reservation in request.reservations:
            if index in reservation.amounts:
                parts[reservation.budget] = parts.get(reservation.budget, NOTHING).plus(reservation.amounts[index])
        refusing = next((budgets[name] for name, amount in parts.items() if not budgets[name].allows(amount)), None)
        if refusing is not None:
            unfunded[index] = refusing
            continue
        for name, amount in parts.items():
            budgets[name] = budgets[name]._replace(held=budgets[name].held.plus(amount))
            reserved[name] = reserved.get(name, NOTHING).plus(amount)
    return budgets, reserved, unfunded


def _usable_budget(transaction: Transaction, name: str, limit: BudgetLimit) -> BudgetStatus:
    """Return a budget with the limits that are in force: `limit` if it has none, or was removed."""
    budget = transaction.budget(name) or BudgetStatus(name, BudgetLimit())
    return budget if budget.has_limit else budget._replace(limit=limit)


def _model_state(transaction: Transaction, request: Begin, account: str) -> ModelState | None:
    """Return the state of the request's model; a new one if the request is the first with a limit."""
    state = transaction.model(account, request.model)
    return ModelState() if state is None and any(request.limits) else state


def _permit_wait(transaction: Transaction, request: Begin, account: str, state: ModelState, tokens: int) -> float:
    if not any(request.limits):
        return 0.0
    others = transaction.others_backlog(account, request.model)
    demand = Demand(request.backlog_requests + others[0], max(tokens, request.backlog_tokens) + others[1])
    return state.wait(tokens, request.limits, transaction.now, is_query=request.is_query, demand=demand)


def _correct_permit(state: ModelState, lease: Lease, permit_at: float, request: End, now: float) -> None:
    """Replace the tokens of a permit by the billed ones, and its time by that of the request."""
    if request.sent_at is None:
        state.give_back(lease.permit_tokens, permit_at, now)
        return
    tokens = lease.permit_tokens if request.tokens is None else request.tokens
    state.correct(lease.permit_tokens, permit_at, tokens, max(permit_at, request.sent_at), now)
