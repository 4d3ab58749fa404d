"""Budgets of requests: reserved before a request is sent, settled with its bill. No I/O."""

from __future__ import annotations

from collections.abc import Callable
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
from embedkit_core.costs.tokens import split_bill
from embedkit_core.engine.scheduler.items import Item, Ticket, Waiter, max_billed_tokens
from embedkit_core.engine.scheduler.queues import Request

# Refusals in which nothing was done; of any other failure of a server it is not known.
NOT_BILLED = (AuthenticationError, BadRequestError, QuotaError, RateLimitError)
NOT_BILLED_STATUSES = (501, 503, 529)


@dataclass(slots=True)
class Funding:
    """The result of a reservation: the items that are paid for, those that wait, and the refusals.

    `parked` items wait for reserved budget to be released; `unwanted` ones have no waiter left. A waiter in `refused`
    cannot pay and was removed from its item.
    """

    paid: list[Item] = field(default_factory=list)
    parked: list[Item] = field(default_factory=list)
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
        """Reserve budget for each text of a request; remove the texts that no caller can pay for."""
        self._in_flight.add(request)
        funding = Funding()
        for item in request.items:
            if self._choose_payer(item):
                funding.paid.append(item)
            else:
                self._hold(item, funding)
        # A refusal for one piece of a text removes the waiter from all its pieces, also from those that are paid for.
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

    def _choose_payer(self, item: Item) -> bool:
        """Choose the first waiter whose budgets have room for the text. Return True if there is one."""
        if not item.waiters:
            return False
        first = item.waiters[0].ticket
        if not first.billing.budgets:
            item.payer = item.root.payer = first
            return True
        most = max_billed_tokens(item)
        for waiter in item.waiters:
            if waiter.ticket.billing.allows(most):
                waiter.ticket.billing.reserve(most)
                item.reserved = most
                item.payer = item.root.payer = waiter.ticket
                return True
        return False

    def _hold(self, item: Item, funding: Funding) -> None:
        """Keep a text for the waiters whose reserved budget may be released; refuse the others."""
        most = max_billed_tokens(item)
        for waiter in list(item.waiters):
            refusal = waiter.ticket.billing.check(most)
            if refusal is not None:
                item.waiters.remove(waiter)
                funding.refused.append((waiter, refusal))
        if not item.waiters:
            funding.unwanted.append(item)
            return
        self._awaiting[item] = None
        item.location = self._awaiting
        funding.parked.append(item)
        for budget in {budget for waiter in item.waiters for budget in waiter.ticket.billing.budgets}:
            budget.waiting.add(self)

    @property
    def awaiting_budget(self) -> list[Item]:
        """The texts that wait for budget."""
        return [item for item in self._awaiting if item.waiters]

    def retry(self, item: Item) -> list[Item]:
        """Stop holding a text, or its pieces, because another caller wants it. Return what to put into the queue."""
        candidates = [one for one in self._awaiting if one.root is item] if item.missing_pieces else [item]
        held = [one for one in candidates if one in self._awaiting]
        for one in held:
            del self._awaiting[one]
        return held

    def forget(self, item: Item) -> None:
        """Stop holding a text."""
        self._awaiting.pop(item, None)

    def on_budget_released(self) -> None:
        """Note that budget was released, and ask for a poll."""
        self._released = True
        self._request_poll()

    def take_released(self) -> list[Item]:
        """Return the texts to try again since budget was released, in the order in which they were held."""
        if not self._released:
            return []
        self._released = False
        awaiting, self._awaiting = self._awaiting, {}
        return list(awaiting)

    # After a request was answered

    def settle(self, request: Request, tokens: int | None) -> None:
        """Book the tokens of a reply on those who pay, each text by its size; None where the provider does not say."""
        self._in_flight.discard(request)
        if tokens is None:
            payers = [item.payer for item in request.items if item.payer is not None]
            if any(payer.billing.budgets or payer.billing.price for payer in payers):
                self._mark_unconfirmed(request)
                return
        bills: dict[Ticket, tuple[int, int]] = {}
        sizes = [item.size for item in request.items]
        if any(item.reserved for item in request.items):  # by their bounds, so that no share is more than was reserved
            sizes = [item.reserved or max_billed_tokens(item) for item in request.items]
        for item, share in zip(request.items, split_bill(tokens or 0, sizes), strict=True):
            if item.payer is not None:
                billed, reserved = bills.get(item.payer, (0, 0))
                bills[item.payer] = billed + share, reserved + item.reserved
                item.reserved = 0
        for payer, (billed, reserved) in bills.items():
            payer.charge(payer.billing.settle(reserved, billed))

    def settle_failure(self, request: Request, error: ProviderError) -> None:
        """Book what a failed request was billed at: nothing, what the reply said, or nobody knows."""
        if isinstance(error, (BadReplyError, EncodingRefusedError)) and error.tokens is not None:
            self.settle(request, error.tokens)
        elif error.unsent or isinstance(error, NOT_BILLED) or _is_refusal(error.status):
            self.settle(request, 0)
        else:
            self._mark_unconfirmed(request)

    def mark_all_unconfirmed(self) -> None:
        """Count all that is under way as possibly billed: nobody listens to it any more."""
        for request in list(self._in_flight):
            self._mark_unconfirmed(request)

    def _mark_unconfirmed(self, request: Request) -> None:
        self._in_flight.discard(request)
        for item in request.items:
            if item.payer is not None:
                most = item.reserved or max_billed_tokens(item)
                item.payer.charge(item.payer.billing.mark_unconfirmed(item.reserved, most))
                item.reserved = 0


def _is_refusal(status: int | None) -> bool:
    return status is not None and status != 408 and (status < 500 or status in NOT_BILLED_STATUSES)
