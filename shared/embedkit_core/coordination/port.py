"""Interface of a coordinator: what a scheduler asks before each request and reports after it. No I/O.

Times are seconds of the clock of this process (`time.monotonic`). A coordinator of several machines converts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from embedkit_core.common.types import NO_LIMITS, RateSettings
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus
from embedkit_core.providers.secrets import Secret

LeaseID: TypeAlias = int | str
MAX_WAIT_AHEAD = 2.0  # seconds that a permit is granted in advance at most; a process that dies loses no more
LEASE_SECONDS = 10.0  # until the leases of an owner that does not renew them count as lost
RENEW_SECONDS = 3.0
KEEP_SECONDS = 5.0  # that an ended lease is kept, for processes that looked into the cache before
MODEL_SECONDS = 120.0  # that a model's requests of the last minute are kept after its last use
NO_AMOUNT = Amount()
PREFIX_BYTES = 8  # of a key, that are stored: texts that are in flight together do not share them by chance


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ProviderAccount:
    """The provider's account, whose rate limits all processes share.

    Attributes:
        provider: Name of the provider.
        endpoint: Its address, "" for the default host.
        secret: The API key. Only a digest of it with the coordinator's salt leaves the process.
        name: The user's name for the account, which stands for all of its keys.
    """

    provider: str
    endpoint: str
    secret: Secret | None = field(default=None, repr=False)
    name: str | None = None

    def digest(self, salt: bytes) -> str:
        """Return an identifier that is the same in all processes with the same salt, and does not show the key.

        Accounts with keys from a function share one identifier for each provider and endpoint, unless they are named.
        """
        import hmac

        identity = ("", "")
        if self.name is not None:
            identity = ("name", self.name)
        elif self.secret is not None and self.secret.source is None and not self.secret.is_lost:
            identity = ("key", self.secret.reveal())
        parts = (self.provider, self.endpoint, *identity)
        return hmac.new(salt, "\0".join(parts).encode(), hashlib.sha256).hexdigest()[:32]


class Reservation(NamedTuple):
    """Upper bounds of what the texts of a request cost in one named budget.

    Attributes:
        budget: The name of the budget.
        limit: Its limits.
        amounts: The amount of each text that it pays for, by index in the request.
    """

    budget: str
    limit: BudgetLimit
    amounts: Mapping[int, Amount]


@dataclass(frozen=True, slots=True)
class Begin:
    """A request that is about to be sent.

    Attributes:
        account: The account that it is sent on.
        model: The model, "provider:model"; limits per minute apply to each model of an account.
        keys: The cache key of each text; empty for a text that is sent without a claim.
        tokens: The estimated tokens of each text.
        since: The time since which each text is known to be missing from the cache: the start of the oldest look-up.
        limits: The strictest limits of the callers.
        is_query: True for queries, which have a reserve of each limit and are not paced.
        backlog_requests: The requests that this process has to send on this model, including this one.
        backlog_tokens: The same, in estimated tokens.
        reservations: Upper bounds for the named budgets that pay for its texts.
    """

    account: ProviderAccount
    model: str
    keys: Sequence[bytes]
    tokens: Sequence[int]
    since: float
    limits: RateSettings = NO_LIMITS
    is_query: bool = False
    backlog_requests: int = 1
    backlog_tokens: int = 0
    reservations: Sequence[Reservation] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """The answer to a `Begin`. Texts are named by their index in the request.

    All texts that are in none of the mappings may be sent after `wait` seconds.

    Attributes:
        lease: Identifies what was claimed and reserved, until the `End`. None if nothing was: then no text may be sent,
            and the others that are in no mapping must be asked for again after `wait` seconds.
        wait: Seconds.
        others: Texts that another process is sending, with its lease.
        recheck: Texts that another process may have completed by now: the cache must be read again.
        unfunded: Texts for which a budget has no room.
        paused: Seconds for which the provider asked to send nothing.
        processes: The number of processes that share the coordinator.
    """

    lease: LeaseID | None
    wait: float = 0.0
    others: Mapping[int, LeaseID] = field(default_factory=dict)
    recheck: Collection[int] = ()
    unfunded: Mapping[int, BudgetStatus] = field(default_factory=dict)
    paused: float = 0.0
    processes: int = 1


class Bill(NamedTuple):
    """What a request cost in one named budget: billed, and possibly billed because its outcome is unknown."""

    billed: Amount = Amount()
    lost: Amount = Amount()


@dataclass(frozen=True, slots=True)
class End:
    """The end of a request: its rows are in the cache, or it failed, or it was not sent.

    Attributes:
        lease: The lease.
        sent_at: The time at which it was sent; None if it was not sent, which gives its permit back.
        tokens: The billed tokens; None if they are unknown.
        pause: Seconds for which the provider asked to send nothing on this model.
        bills: What it cost, by the name of the budget. A reservation without a bill is released.
    """

    lease: LeaseID
    sent_at: float | None = None
    tokens: int | None = None
    pause: float = 0.0
    bills: Mapping[str, Bill] = field(default_factory=dict)


@runtime_checkable
class Coordinator(Protocol):
    """Interface of a coordinator. Its methods may block.

    `open_budget`, `hold`, `settle` and `close` are called on any thread, the others on one thread. They raise
    `CoordinationError` if the coordinator cannot be reached. Then requests are sent without it: texts may be paid for
    twice, and named budgets refuse.
    """

    def exchange(self, begins: Sequence[Begin], ends: Sequence[End]) -> list[Grant]:
        """End requests and begin others, in one atomic step. Return a grant for each of `begins`.

        An `End` of a lease that was lost meanwhile still settles its bills. One that is repeated changes nothing.
        """
        ...

    def renew(self) -> None:
        """Keep the leases of this process; called every `RENEW_SECONDS` while there are any."""
        ...

    def ended(self, leases: Collection[LeaseID]) -> Collection[LeaseID]:
        """Return those of other processes' leases that have ended or are lost."""
        ...

    def open_budget(self, name: str, limit: BudgetLimit) -> None:
        """Create a named budget, or check the limits of an existing one.

        Raises:
            ConfigurationError: It exists with other limits.
        """
        ...

    def hold(self, hold: str, budget: str, limit: BudgetLimit, amount: Amount) -> BudgetStatus | None:
        """Reserve an upper bound in a named budget for work that outlives this process, such as a batch.

        The reservation belongs to no process, and lasts until its final settlement. A repeated call with the same ID
        and budget changes nothing.

        Args:
            hold: The ID, which is unique for the budget.
            budget: The name of the budget.
            limit: Its limits.
            amount: The upper bound.

        Returns:
            None if it is reserved, else the budget, which has no room for it.
        """
        ...

    def settle(self, hold: str, budget: str, billed: Amount, lost: Amount = NO_AMOUNT, *, is_final: bool) -> None:
        """Count what was billed so far of the work of a hold, in place of what is held.

        Amounts are totals, so that repeated and overtaken calls change nothing. They may exceed what is held; what was
        billed is counted even if the hold is unknown. After the final settlement, no call changes anything. But if
        nothing was billed or lost, the hold is forgotten, and its ID may be used again.

        Args:
            hold: The ID of the hold.
            budget: The name of the budget.
            billed: What was billed in total so far.
            lost: What was possibly billed besides, in a final settlement.
            is_final: True to release what is held beyond that, and to end the hold.
        """
        ...

    def close(self) -> None:
        """Close connections and files. The next call opens them again."""
        ...
