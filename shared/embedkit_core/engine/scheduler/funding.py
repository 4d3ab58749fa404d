"""Who pays for what goes out, and what becomes of that money when it comes back or does not. Pure."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Literal

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    EncodingRefusedError,
    ProviderError,
    QuotaError,
    RateLimitError,
)
from embedkit_core.costs.tokens import most_tokens, share_out
from embedkit_core.engine.scheduler.items import Flight, Item, Lane, Ticket

if TYPE_CHECKING:
    from embedkit_core.engine.scheduler.scheduler import Scheduler

# Refusals in which nothing was done; of any other failure of a server it is not known.
DONE_NOTHING = (AuthenticationError, BadRequestError, QuotaError, RateLimitError)
OVERLOADED = (501, 503, 529)


def most_of(item: Item) -> int:
    """Give how many tokens a text may be billed at, at most."""
    return most_tokens(item.text) + item.lane.lane.added_tokens


def most_in_all(text: str, lane: Lane) -> int:
    """Give how many tokens a text may be billed at, at most, in as many pieces as "mean" may have to cut it into.

    Each is sent with the prompt. Pieces are of equal length, so that twice as many as would be full suffice; where the
    limit is not known, nor is their number.
    """
    tokens, limit = most_tokens(text), lane.limits.text_tokens
    pieces = 2 * ceil(tokens / limit) if lane.long_text == "mean" and limit and tokens > limit else 1
    return tokens + pieces * lane.added_tokens


class Treasury:
    """The money of one scheduler's requests: those under way, and the texts that wait for a bill to come in."""

    def __init__(self, scheduler: Scheduler, nudge: Callable[[], object]) -> None:
        self._scheduler = scheduler
        self._nudge = nudge
        self._aloft: set[Flight] = set()
        self._unpaid: dict[Item, None] = {}

    # Before a request goes out

    def fund(self, flight: Flight) -> bool:
        """Find who pays for each text of a request, take out those that nobody can, and tell whether any are left."""
        self._aloft.add(flight)
        paid = [item for item in flight.items if self._find_payer(item) or self._set_aside(item)]
        # Whoever was told that a piece of their text is too dear wants none of the others any more.
        flight.items = [item for item in paid if item.waiters or self._give_back(item)]
        if not flight.items:
            self._aloft.discard(flight)
        return bool(flight.items)

    def _find_payer(self, item: Item) -> bool:
        """Let the first of those who wait for a text whose budgets allow it pay."""
        if not item.waiters:
            return False
        first = item.waiters[0].ticket
        if not first.purse.budgets:
            item.payer = item.root.payer = first
            return True
        most = most_of(item)
        for waiter in item.waiters:
            if waiter.ticket.purse.admits(most):
                waiter.ticket.purse.reserve(most)
                item.reserved = most
                item.payer = item.root.payer = waiter.ticket
                return True
        return False

    def _set_aside(self, item: Item) -> Literal[False]:
        """Keep a text for those whose money may come back; the others are told that theirs does not suffice."""
        most, scheduler = most_of(item), self._scheduler
        for waiter in list(item.waiters):
            refusal = waiter.ticket.purse.refusal(most)
            if refusal is not None:
                item.waiters.remove(waiter)
                scheduler.give_up(waiter.ticket, waiter.index, refusal)
        if item.waiters:
            self._unpaid[item] = None
            item.home = self._unpaid
            for budget in {budget for waiter in item.waiters for budget in waiter.ticket.purse.budgets}:
                budget.blocked.add(self)
        else:
            scheduler.drop(item)
            scheduler.drop(item.root)
        return False

    def _give_back(self, item: Item) -> Literal[False]:
        """Let go of a text that was paid for and is not wanted any more, before it is sent."""
        if item.payer is not None:
            item.payer.purse.settle(item.reserved, 0)
            item.reserved = 0
        self._scheduler.drop(item)
        return False

    @property
    def unpaid(self) -> list[Item]:
        """The texts that wait for money."""
        return [item for item in self._unpaid if item.waiters]

    def ask_again(self, item: Item) -> None:
        """Put a text that could not be paid for, or its pieces, back in the queue: somebody else wants it."""
        for one in [one for one in self._unpaid if one.root is item] if item.missing else [item]:
            if one in self._unpaid:
                del self._unpaid[one]
                one.lane.enter([one])

    def forget(self, item: Item) -> None:
        """Let go of a text that nobody wants any more."""
        self._unpaid.pop(item, None)

    def funds_are_back(self) -> None:
        """Try again to send what could not be paid for."""
        unpaid, self._unpaid = self._unpaid, {}
        for item in reversed(unpaid):
            if item.waiters:
                item.lane.enter([item], front=True)
            else:
                self._scheduler.drop(item)
        self._nudge()

    # After it

    def settle(self, flight: Flight, tokens: int | None) -> None:
        """Book the tokens of a reply on those who pay, each text by its size; None where the provider does not say."""
        self._aloft.discard(flight)
        if tokens is None:
            payers = [item.payer for item in flight.items if item.payer is not None]
            if any(payer.purse.budgets or payer.purse.price for payer in payers):
                self._lose(flight)
                return
        bills: dict[Ticket, tuple[int, int]] = {}
        sizes = [item.size for item in flight.items]
        if any(item.reserved for item in flight.items):  # by their bounds, so that no share is more than was reserved
            sizes = [item.reserved or most_of(item) for item in flight.items]
        for item, share in zip(flight.items, share_out(tokens or 0, sizes), strict=True):
            if item.payer is not None:
                billed, reserved = bills.get(item.payer, (0, 0))
                bills[item.payer] = billed + share, reserved + item.reserved
                item.reserved = 0
        for payer, (billed, reserved) in bills.items():
            payer.charge(payer.purse.settle(reserved, billed))

    def settle_failure(self, flight: Flight, error: ProviderError) -> None:
        """Book what a failed request was billed at: nothing, what the reply said, or nobody knows."""
        if isinstance(error, (BadReplyError, EncodingRefusedError)) and error.tokens is not None:
            self.settle(flight, error.tokens)
        elif error.unsent or isinstance(error, DONE_NOTHING) or _is_refusal(error.status):
            self.settle(flight, 0)
        else:
            self._lose(flight)

    def lose_all(self) -> None:
        """Count all that is under way as possibly billed: nobody listens to it any more."""
        for flight in list(self._aloft):
            self._lose(flight)

    def _lose(self, flight: Flight) -> None:
        self._aloft.discard(flight)
        for item in flight.items:
            if item.payer is not None:
                most = item.reserved or most_of(item)
                item.payer.charge(item.payer.purse.lose(item.reserved, most))
                item.reserved = 0


def _is_refusal(status: int | None) -> bool:
    return status is not None and status != 408 and (status < 500 or status in OVERLOADED)
