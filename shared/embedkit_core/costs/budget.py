"""What may be spent: reserved before a request goes out, settled with its bill. Pure.

A reservation is an upper bound on what a text can cost: a token is at least one byte of UTF-8. Where the outcome of a
request is unknown, its reservation stays spent: it may have been billed.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

from embedkit_core.common.fork_safety import register_after_fork
from embedkit_core.common.usage import MILLION
from embedkit_core.costs.tokens import cost_usd


class BudgetWaiter(Protocol):
    """A ledger with texts that wait for reserved budget to be released."""

    def on_budget_released(self) -> None:
        """Note that budget was released."""


class Budget:
    """A bound on dollars, on tokens or on both; of this process, and written by the engine's thread alone."""

    __slots__ = (
        "__weakref__",
        "limit_tokens",
        "limit_usd",
        "reserved_tokens",
        "reserved_usd",
        "spent_tokens",
        "spent_usd",
        "unconfirmed_tokens",
        "unconfirmed_usd",
        "waiting",
    )

    def __init__(self, limit_usd: Decimal | None = None, limit_tokens: int | None = None) -> None:
        self.limit_usd = limit_usd
        self.limit_tokens = limit_tokens
        self.spent_tokens = self.unconfirmed_tokens = 0
        self.spent_usd = self.unconfirmed_usd = Decimal(0)
        self.after_fork_in_child()
        register_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Reserve nothing: what was is the parent's to settle."""
        self.reserved_tokens = 0
        self.reserved_usd = Decimal(0)
        self.waiting: set[BudgetWaiter] = set()

    @property
    def has_reservations(self) -> bool:
        """Tell whether something is reserved that may come back."""
        return bool(self.reserved_tokens)

    @property
    def left_usd(self) -> Decimal | None:
        """The dollars that may still be spent, None for no limit."""
        if self.limit_usd is None:
            return None
        return self.limit_usd - self.spent_usd - self.unconfirmed_usd - self.reserved_usd

    @property
    def left_tokens(self) -> int | None:
        """The tokens that may still be spent, None for no limit."""
        if self.limit_tokens is None:
            return None
        return self.limit_tokens - self.spent_tokens - self.unconfirmed_tokens - self.reserved_tokens

    def allows(self, tokens: int, price: Decimal | None) -> bool:
        """Tell whether so many tokens at this price may still be spent."""
        usd, left = self.left_usd, self.left_tokens
        if usd is not None and (price is None or tokens * price / MILLION > usd):
            return False
        return left is None or tokens <= left

    def reserve(self, tokens: int, price: Decimal | None) -> None:
        """Set so many tokens aside."""
        self.reserved_tokens += tokens
        self.reserved_usd += cost_usd(tokens, price)

    def settle(self, reserved: int, billed: int, price: Decimal | None) -> None:
        """Take a bill in place of what was reserved for it."""
        self._release(reserved, price)
        self.spent_tokens += billed
        self.spent_usd += cost_usd(billed, price)

    def mark_unconfirmed(self, reserved: int, price: Decimal | None) -> None:
        """Count as spent what was reserved for a request of which nobody knows what became."""
        self._release(reserved, price)
        self.unconfirmed_tokens += reserved
        self.unconfirmed_usd += cost_usd(reserved, price)

    def _release(self, reserved: int, price: Decimal | None) -> None:
        self.reserved_tokens -= reserved
        self.reserved_usd -= cost_usd(reserved, price)
        blocked, self.waiting = self.waiting, set()
        for one in blocked:
            one.on_budget_released()
