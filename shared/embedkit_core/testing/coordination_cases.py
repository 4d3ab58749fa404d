"""Base of the cases of the conformance suite for coordinators."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedkit_core.common.types import NO_LIMITS, RateSettings
from embedkit_core.coordination.port import (
    Begin,
    Bill,
    Coordinator,
    End,
    Grant,
    LeaseID,
    ProviderAccount,
    Reservation,
)
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from embedkit_core.providers.secrets import Secret
from embedkit_core.testing.suite import Suite, skip

MODEL = "acme:small"
API_KEY = "acme-key-of-the-suite-7Q2x"
ACCOUNT = ProviderAccount("acme", "", Secret(API_KEY))
FOREVER = float("inf")
NO_BILLS: Mapping[str, Bill] = {}


class CoordinationCases(Suite):
    """Helpers of the cases, which talk to a coordinator as the engine does."""

    def make(self, folder: Path) -> Coordinator:
        """Return a new participant of the coordinator of a folder.

        Each test has its own empty folder. A coordinator that is not on disk uses the path as a unique name.
        """
        raise NotImplementedError(f"{type(self).__name__}: define make(self, folder), which returns the coordinator.")

    def kill(self, coordinator: Coordinator) -> None:  # noqa: ARG002
        """Do to a participant what happens if its process is killed, until the others have noticed it."""
        skip("kill(self, coordinator) is not defined")

    def stop(self, coordinator: Coordinator) -> None:  # noqa: ARG002
        """Do to a participant what happens if its process is stopped until its leases are lost."""
        skip("stop(self, coordinator) is not defined")


_numbers = itertools.count()


def new_keys(n: int = 1) -> list[bytes]:
    """Return keys like those of the library, which no other test has."""
    return [hashlib.sha256(f"key {next(_numbers)}".encode()).digest() for _ in range(n)]


def request(
    keys: Sequence[bytes],
    *,
    since: float = FOREVER,
    tokens: int = 10,
    account: ProviderAccount = ACCOUNT,
    model: str = MODEL,
    limits: RateSettings = NO_LIMITS,
    is_query: bool = False,
    backlog: int = 1,
    reservations: Sequence[Reservation] = (),
) -> Begin:
    """Return a request with a text for each key; by default its texts were looked up right before.

    Args:
        keys: The keys.
        since: The start of the look-up.
        tokens: The tokens of each text.
        account: The account.
        model: The model.
        limits: The limits of the caller.
        is_query: True for a query.
        backlog: How many such requests wait, including this one.
        reservations: The reservations.
    """
    since = time.monotonic() if since == FOREVER else since
    each = [tokens] * len(keys)
    backlog_tokens = backlog * sum(each)
    return Begin(account, model, keys, each, since, limits, is_query, backlog, backlog_tokens, reservations)


def begin(coordinator: Coordinator, one: Begin) -> Grant:
    """Begin one request."""
    [grant] = coordinator.exchange([one], [])
    return grant


def claim(coordinator: Coordinator, keys: Sequence[bytes]) -> LeaseID:
    """Claim keys that no participant is sending, as often as they must be looked up again."""
    grant = begin(coordinator, request(keys))
    for _ in range(100):
        if not grant.recheck:
            break
        time.sleep(0.02)
        grant = begin(coordinator, request(keys))
    assert grant.lease is not None, f"texts that no participant is sending are not granted: {grant}"
    assert not grant.others
    assert not grant.recheck
    return grant.lease


def end(
    coordinator: Coordinator, lease: LeaseID, *, tokens: int | None = None, bills: Mapping[str, Bill] = NO_BILLS
) -> None:
    """End a request that was sent."""
    assert coordinator.exchange([], [End(lease, time.monotonic(), tokens, bills=bills)]) == []


def cancel(coordinator: Coordinator, lease: LeaseID) -> None:
    """End a request that was not sent."""
    coordinator.exchange([], [End(lease)])


def reserve(coordinator: Coordinator, budget: str, limit: BudgetLimit, *amounts: Amount) -> Grant:
    """Begin a request with a text for each amount, which a budget pays for."""
    one = request(new_keys(len(amounts)), reservations=[Reservation(budget, limit, dict(enumerate(amounts)))])
    return begin(coordinator, one)


def status_of(coordinator: Coordinator, budget: str, limit: BudgetLimit) -> BudgetStatus:
    """Return a budget, from the refusal of an amount that is larger than its limit."""
    too_much = Amount((limit.nano_usd or 0) + 1, (limit.tokens or 0) + 1)
    unfunded: Mapping[int, BudgetStatus] = reserve(coordinator, budget, limit, too_much).unfunded
    assert 0 in unfunded, f"an amount above the limit is not refused: {too_much} of {limit}"
    return unfunded[0]
