"""A budget: reserved before a request is sent, settled with its bill. No I/O.

A reservation is an upper bound for the cost of a text: a token has at least one byte of UTF-8. If the outcome of a
request is unknown, its reservation counts as spent because the request may have been billed.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

from embedkit_core.common.fork_safety import register_after_fork
from embedkit_core.common.money import USD
from embedkit_core.costs.amounts import BudgetLimit, to_nano_usd
from embedkit_core.costs.tokens import cost_of, cost_or_zero

_add, _subtract = USD.add, USD.subtract


class BudgetWaiter(Protocol):
    """A ledger with texts that wait for reserved budget to be released."""

    def on_budget_released(self) -> None:
        """Note that budget was released."""


class Budget:
    """A limit on USD, on tokens or on both, in this process. Only the engine's thread changes it.

    The spending of a named budget is counted by the coordinator of the processes that share it. Here its limit applies
    only to what is reserved in this process. Spending that was reset there must not count here.

    Attributes:
        name: The name of a budget that processes share. None for a budget of this process.
        coordinator: Where a named budget was opened. None before its first use.
        limit_usd: Limit in USD. None for no limit.
        limit_tokens: Limit in tokens. None for no limit.
        spent_usd: Billed USD.
        spent_tokens: Billed tokens.
        unconfirmed_usd: USD of requests with an unknown outcome.
        unconfirmed_tokens: Tokens of requests with an unknown outcome.
        reserved_usd: USD reserved for requests in flight and for batches.
        reserved_tokens: Tokens reserved for requests in flight and for batches.
        held_tokens: The part of `reserved_tokens` that is reserved for batches. No text waits for its release.
        waiting: Ledgers to notify when a reservation is released.
    """

    __slots__ = (
        "__weakref__",
        "coordinator",
        "held_tokens",
        "limit_tokens",
        "limit_usd",
        "name",
        "reserved_tokens",
        "reserved_usd",
        "spent_tokens",
        "spent_usd",
        "unconfirmed_tokens",
        "unconfirmed_usd",
        "waiting",
    )

    def __init__(
        self, limit_usd: Decimal | None = None, limit_tokens: int | None = None, name: str | None = None
    ) -> None:
        self.name = name
        self.coordinator: object | None = None
        self.limit_usd = limit_usd
        self.limit_tokens = limit_tokens
        self.spent_tokens = self.unconfirmed_tokens = 0
        self.spent_usd = self.unconfirmed_usd = Decimal(0)
        self.after_fork_in_child()
        register_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Drop all reservations: the parent settles them."""
        self.reserved_tokens = self.held_tokens = 0
        self.reserved_usd = Decimal(0)
        self.waiting: set[BudgetWaiter] = set()

    @property
    def limit(self) -> BudgetLimit:
        """The limits in integers, USD rounded down to a nano-USD."""
        return BudgetLimit(None if self.limit_usd is None else to_nano_usd(self.limit_usd), self.limit_tokens)

    @property
    def has_reservations(self) -> bool:
        """True if there are reservations for requests in flight, which may be released."""
        return self.reserved_tokens > self.held_tokens

    @property
    def left_usd(self) -> Decimal | None:
        """USD that are neither spent nor reserved, of a named budget those not reserved here. None for no limit."""
        if self.limit_usd is None:
            return None
        used = self.reserved_usd if self.name is not None else _add(self.used_usd, self.reserved_usd)
        return _subtract(self.limit_usd, used)

    @property
    def used_usd(self) -> Decimal:
        """USD that were billed or possibly billed."""
        return _add(self.spent_usd, self.unconfirmed_usd)

    @property
    def left_tokens(self) -> int | None:
        """Tokens that are neither spent nor reserved, like `left_usd`. None for no limit."""
        if self.limit_tokens is None:
            return None
        used = 0 if self.name is not None else self.spent_tokens + self.unconfirmed_tokens
        return self.limit_tokens - used - self.reserved_tokens

    def allows(self, tokens: int, price: Decimal | None) -> bool:
        """Return True if the budget has room for `tokens`. A limit in USD has none if the price is unknown."""
        usd, left = self.left_usd, self.left_tokens
        if usd is not None and (price is None or cost_of(tokens, price) > usd):
            return False
        return left is None or tokens <= left

    def reserve(self, tokens: int, price: Decimal | None) -> None:
        """Reserve `tokens`."""
        self.reserved_tokens += tokens
        self.reserved_usd = _add(self.reserved_usd, cost_or_zero(tokens, price))

    def hold(self, tokens: int, price: Decimal | None) -> None:
        """Reserve `tokens` for a batch, which may take a day."""
        self.held_tokens += tokens
        self.reserve(tokens, price)

    def end_hold(self, tokens: int) -> int:
        """Turn a part of what is held into a reservation, to be settled. Return it; 0 in a forked child."""
        ended = min(tokens, self.held_tokens)
        self.held_tokens -= ended
        return ended

    def settle(self, reserved: int, billed: int, price: Decimal | None) -> None:
        """Replace a reservation by the billed tokens."""
        self._release(reserved, price)
        self.spent_tokens += billed
        self.spent_usd = _add(self.spent_usd, cost_or_zero(billed, price))

    def mark_unconfirmed(self, reserved: int, price: Decimal | None) -> None:
        """Count a reservation as possibly billed, because the outcome of its request is unknown."""
        self._release(reserved, price)
        self.unconfirmed_tokens += reserved
        self.unconfirmed_usd = _add(self.unconfirmed_usd, cost_or_zero(reserved, price))

    def _release(self, reserved: int, price: Decimal | None) -> None:
        self.reserved_tokens -= reserved
        self.reserved_usd = _subtract(self.reserved_usd, cost_or_zero(reserved, price))
        notified, self.waiting = self.waiting, set()
        for waiter in notified:
            waiter.on_budget_released()
