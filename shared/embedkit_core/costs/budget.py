"""What may be spent: reserved before a request goes out, settled with its bill. Pure.

A reservation is an upper bound on what a text can cost: a token is at least one byte of UTF-8. Where the outcome of a
request is unknown, its reservation stays spent: it may have been billed.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

from embedkit_core.common.fork_safety import tell_child
from embedkit_core.common.usage import MILLION
from embedkit_core.costs.tokens import usd_of


class BudgetWaiter(Protocol):
    """A ledger with texts that wait for reserved budget to be released."""

    def on_budget_released(self) -> None:
        """Note that budget was released."""


class Budget:
    """A bound on dollars, on tokens or on both; of this process, and written by the engine's thread alone."""

    __slots__ = (
        "__weakref__",
        "blocked",
        "limit_tokens",
        "limit_usd",
        "lost_tokens",
        "lost_usd",
        "reserved_tokens",
        "reserved_usd",
        "spent_tokens",
        "spent_usd",
    )

    def __init__(self, limit_usd: Decimal | None = None, limit_tokens: int | None = None) -> None:
        self.limit_usd = limit_usd
        self.limit_tokens = limit_tokens
        self.spent_tokens = self.lost_tokens = 0
        self.spent_usd = self.lost_usd = Decimal(0)
        self.in_child()
        tell_child(self)

    def in_child(self) -> None:
        """Reserve nothing: what was is the parent's to settle."""
        self.reserved_tokens = 0
        self.reserved_usd = Decimal(0)
        self.blocked: set[BudgetWaiter] = set()

    @property
    def waits(self) -> bool:
        """Tell whether something is reserved that may come back."""
        return bool(self.reserved_tokens)

    @property
    def left_usd(self) -> Decimal | None:
        """The dollars that may still be spent, None for no limit."""
        if self.limit_usd is None:
            return None
        return self.limit_usd - self.spent_usd - self.lost_usd - self.reserved_usd

    @property
    def left_tokens(self) -> int | None:
        """The tokens that may still be spent, None for no limit."""
        if self.limit_tokens is None:
            return None
        return self.limit_tokens - self.spent_tokens - self.lost_tokens - self.reserved_tokens

    def admits(self, tokens: int, price: Decimal | None) -> bool:
        """Tell whether so many tokens at this price may still be spent."""
        usd, left = self.left_usd, self.left_tokens
        if usd is not None and (price is None or tokens * price / MILLION > usd):
            return False
        return left is None or tokens <= left

    def reserve(self, tokens: int, price: Decimal | None) -> None:
        """Set so many tokens aside."""
        self.reserved_tokens += tokens
        self.reserved_usd += usd_of(tokens, price)

    def settle(self, reserved: int, billed: int, price: Decimal | None) -> None:
        """Take a bill in place of what was reserved for it."""
        self._free(reserved, price)
        self.spent_tokens += billed
        self.spent_usd += usd_of(billed, price)

    def lose(self, reserved: int, price: Decimal | None) -> None:
        """Count as spent what was reserved for a request of which nobody knows what became."""
        self._free(reserved, price)
        self.lost_tokens += reserved
        self.lost_usd += usd_of(reserved, price)

    def _free(self, reserved: int, price: Decimal | None) -> None:
        self.reserved_tokens -= reserved
        self.reserved_usd -= usd_of(reserved, price)
        blocked, self.blocked = self.blocked, set()
        for one in blocked:
            one.on_budget_released()
