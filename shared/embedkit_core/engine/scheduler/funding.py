"""Budgets of requests: reserved before a request is sent, settled with its bill. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BudgetError,
    EncodingRefusedError,
    ProviderError,
    QuotaError,
    RateLimitError,
)
from embedkit_core.coordination.port import Bill, Reservation
from embedkit_core.costs.amounts import Amount, BudgetLimit, amount_of
from embedkit_core.costs.tokens import split_bill
from embedkit_core.engine.scheduler.items import Item, Ticket, Waiter, max_billed_tokens
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.replies import believable_bill

# Refusals that are not billed. After any other failure of a server it is unknown.
NOT_BILLED = (AuthenticationError, BadRequestError, QuotaError, RateLimitError)
NOT_BILLED_STATUSES = (501, 503, 529)


@dataclass(slots=True)
class Funding:
    """The result of a reservation.

    Attributes:
        paid: Items with reserved budget, to be sent.
        unwanted: Items without waiters.
        refused: Waiters without budget and their errors. They were removed from their items.
    """

    paid: list[Item] = field(default_factory=list)
    unwanted: list[Item] = field(default_factory=list)
    refused: list[tuple[Waiter, BudgetError]] = field(default_factory=list)


class BudgetLedger:
    """The reservations of one scheduler's requests in flight, and the texts that wait for budget.

    `request_poll` is called when budget was released, on any account: the scheduler may be able to send again.
    """

    def __init__(self, request_poll: Callable[[], object]) -> None:
        self._request_poll = request_poll
        self._in_flight: set[Request] = set()
        self._awaiting: dict[Item, None] = {}
        self._released = False

    # Before a request is sent

    def reserve(self, request: Request) -> Funding:
        """Reserve budget for each text of a request; drop the texts that no caller can pay for."""
        self._in_flight.add(request)
        funding = Funding()
        for item in request.items:
            if self._choose_payer(item):
                funding.paid.append(item)
            else:
                self._hold(item, funding)
        # A refusal for one piece of a text removes the waiter from all pieces, also from those with reserved budget.
        for item in [item for item in funding.paid if not item.waiters]:
            if item.payer is not None:
                item.payer.billing.settle(item.reserved, 0)
                item.reserved = 0
            funding.paid.remove(item)
            funding.unwanted.append(item)
        request.items = funding.paid
        if not request.items:
            self._in_flight.discard(request)
        return funding

    def release(self, request: Request, kept: list[Item]) -> None:
        """Release the reservations of all texts of a request but some, which it keeps."""
        if len(kept) == len(request.items):
            return
        for item in set(request.items).difference(kept):
            if item.payer is not None:
                item.payer.billing.settle(item.reserved, 0)
                item.reserved = 0
                item.payer = item.root.payer = None
        request.items = kept
        if not kept:
            self._in_flight.discard(request)

    def _choose_payer(self, item: Item) -> bool:
        """Choose the first waiter whose budgets have room for the text. Return True if there is one."""
        if not item.waiters:
            return False
        first = item.waiters[0].ticket
        if not first.billing.budgets:
            item.payer = item.root.payer = first
            return True
        tokens = max_billed_tokens(item)
        for waiter in item.waiters:
            if waiter.ticket.billing.allows(tokens):
                waiter.ticket.billing.reserve(tokens)
                item.reserved = tokens
                item.payer = item.root.payer = waiter.ticket
                return True
        return False

    def _hold(self, item: Item, funding: Funding) -> None:
        """Keep a text for the waiters whose reserved budget may be released; refuse the others."""
        tokens = max_billed_tokens(item)
        for waiter in list(item.waiters):
            refusal = waiter.ticket.billing.check(tokens)
            if refusal is not None:
                item.waiters.remove(waiter)
                funding.refused.append((waiter, refusal))
        if not item.waiters:
            funding.unwanted.append(item)
            return
        self._awaiting[item] = None
        item.location = self._awaiting
        for budget in {budget for waiter in item.waiters for budget in waiter.ticket.billing.budgets}:
            budget.waiting.add(self)

    @property
    def awaiting_budget(self) -> list[Item]:
        """The texts that wait for budget."""
        return [item for item in self._awaiting if item.waiters]

    def retry(self, item: Item) -> list[Item]:
        """Stop holding a text, or its pieces, because another caller joined it. Return the items to queue."""
        pieces = [held for held in self._awaiting if held.root is item] if item.missing_pieces else [item]
        released = [piece for piece in pieces if piece in self._awaiting]
        for piece in released:
            del self._awaiting[piece]
        return released

    def forget(self, item: Item) -> None:
        """Stop holding a text."""
        self._awaiting.pop(item, None)

    def on_budget_released(self) -> None:
        """Accept that budget was released, and request a poll."""
        self._released = True
        self._request_poll()

    def take_released(self) -> list[Item]:
        """Return the held texts, oldest first, if budget was released; they are not held any more."""
        if not self._released:
            return []
        self._released = False
        awaiting, self._awaiting = self._awaiting, {}
        return list(awaiting)

    # After the reply or failure of a request

    def settle(self, request: Request, tokens: int | None) -> None:
        """Book the billed tokens of a reply on the payers, for each text by its size; None if they are unknown."""
        self._in_flight.discard(request)
        if tokens is None:
            payers = [item.payer for item in request.items if item.payer is not None]
            if any(payer.billing.budgets or payer.billing.price for payer in payers):
                self._mark_unconfirmed(request)
                return
        bills: dict[Ticket, tuple[int, int]] = {}
        sizes = [item.size for item in request.items]
        if any(item.reserved for item in request.items):  # by upper bound: no share may exceed its reservation
            sizes = [item.reserved or max_billed_tokens(item) for item in request.items]
        for item, share in zip(request.items, split_bill(tokens or 0, sizes), strict=True):
            if item.payer is not None:
                billed, reserved = bills.get(item.payer, (0, 0))
                bills[item.payer] = billed + share, reserved + item.reserved
                item.reserved = 0
        for payer, (billed, reserved) in bills.items():
            payer.charge(payer.billing.settle(reserved, billed))
            _bill(request, payer, billed=billed)

    def settle_failure(self, request: Request, error: ProviderError) -> None:
        """Book a failed request: not billed, billed as its reply says, or possibly billed."""
        if isinstance(error, BadReplyError) or (isinstance(error, EncodingRefusedError) and error.is_reply):
            billed = believable_bill(request, error.tokens)
            if billed is None:
                self._mark_unconfirmed(request)
            else:
                self.settle(request, billed)
        elif error.unsent or isinstance(error, NOT_BILLED) or _is_refusal(error.status):
            self.settle(request, 0)
        else:
            self._mark_unconfirmed(request)

    def mark_all_unconfirmed(self) -> None:
        """Count all requests in flight as possibly billed; their replies will be ignored."""
        for request in list(self._in_flight):
            self._mark_unconfirmed(request)

    def _mark_unconfirmed(self, request: Request) -> None:
        self._in_flight.discard(request)
        for item in request.items:
            if item.payer is not None:
                tokens = item.reserved or max_billed_tokens(item)
                item.payer.charge(item.payer.billing.mark_unconfirmed(item.reserved, tokens))
                _bill(request, item.payer, lost=item.reserved)
                item.reserved = 0


def reservations(items: Sequence[Item]) -> list[Reservation]:
    """Return what the texts of a request may cost in named budgets at most."""
    limits: dict[str, BudgetLimit] = {}
    amounts: dict[str, dict[int, Amount]] = {}
    for index, item in enumerate(items):
        if item.payer is not None and item.reserved:
            for name, budget in item.payer.billing.named_budgets.items():
                limits[name] = budget.limit
                amounts.setdefault(name, {})[index] = amount_of(item.reserved, item.payer.billing.price)
    return [Reservation(name, limit, amounts[name]) for name, limit in limits.items()]


def _bill(request: Request, payer: Ticket, *, billed: int = 0, lost: int = 0) -> None:
    """Add to what a request costs in the named budgets of a payer."""
    for name in payer.billing.named_budgets:
        bill, price = request.bills.get(name, Bill()), payer.billing.price
        request.bills[name] = Bill(bill.billed.plus(amount_of(billed, price)), bill.lost.plus(amount_of(lost, price)))


def _is_refusal(status: int | None) -> bool:
    return status is not None and status != 408 and (status < 500 or status in NOT_BILLED_STATUSES)
