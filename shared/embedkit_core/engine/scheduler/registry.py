"""Registry of pending texts and their callers: each text once, and how it ends for its waiters. No I/O."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Container, Iterable

from embedkit_core.common.errors import BadReplyError, EmbedKitError, ProviderError
from embedkit_core.common.types import Vectors
from embedkit_core.engine.scheduler.deadlines import Deadlines, deadline_error
from embedkit_core.engine.scheduler.dispatch import Dispatcher
from embedkit_core.engine.scheduler.funding import BudgetLedger
from embedkit_core.engine.scheduler.items import Item, Ticket, Waiter
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.replies import check_width


class Registry:
    """The pending items and tickets.

    Attributes:
        items: The pending items by cache key.
        completed: The tickets that were completed since the last poll.
        deadlines: The deadlines of open tickets.
        server: The server's name in errors.
    """

    def __init__(self, dispatcher: Dispatcher, ledger: BudgetLedger, server: str) -> None:
        self.items: dict[bytes, Item] = {}
        self.completed: list[Ticket] = []
        self.deadlines = Deadlines()
        self._dispatcher = dispatcher
        self._ledger = ledger
        self.server = server

    # Items

    def forget(self, item: Item) -> None:
        """Remove an item from `items`, unless another item has its key by now."""
        if self.items.get(item.key) is item:
            del self.items[item.key]

    def drop(self, item: Item) -> None:
        """Remove an item without waiters from its queue, the budget ledger and `items`."""
        item.queue.leave(item)
        self._ledger.forget(item)
        self.forget(item)

    def drop_unwanted(self, items: Iterable[Item]) -> list[Item]:
        """Drop the items without waiters. Return the others."""
        wanted: list[Item] = []
        for item in items:
            if item.waiters:
                wanted.append(item)
            else:
                self.drop(item)
        return wanted

    def drop_piece(self, item: Item) -> None:
        """Drop an item; if it is a piece of a text, drop the text too."""
        self.drop(item)
        self.drop(item.root)

    def fail(self, items: Iterable[Item], error: ProviderError) -> None:
        """Fail items for all their waiters; each waiter gets its own copy of the error."""
        for item in items:
            for waiter in list(item.waiters):
                self.fail_waiter(item, waiter, error)
            item.waiters.clear()
            self.drop_piece(item)

    def fail_for(self, tickets: Container[Ticket], items: Iterable[Item], error: ProviderError) -> None:
        """Fail items for those of their waiters that belong to some tickets; each gets a copy of the error."""
        for item in items:
            failed = [waiter for waiter in item.waiters if waiter.ticket in tickets]
            for waiter in failed:
                item.waiters.remove(waiter)
                self.give_up(waiter.ticket, waiter.index, copy.copy(error))
            if failed and not item.waiters:
                self.drop(item)

    # Tickets

    def expire(self, now: float) -> None:
        """Fail the texts of callers whose deadline has passed."""
        for ticket in self.deadlines.expired(now):
            pending = [(item, waiter) for item in ticket.items for waiter in item.waiters if waiter.ticket is ticket]
            item, waiter = max(pending, key=lambda text: text[0].retries)
            error = self.with_retries(item, waiter, deadline_error(ticket))
            self.detach(ticket)
            for _, waiter in pending:
                self.give_up(ticket, waiter.index, copy.copy(error))

    def fail_waiter(self, item: Item, waiter: Waiter, error: ProviderError) -> None:
        """Fail an item for one of its waiters, with a copy of the error that states the retries."""
        self.give_up(waiter.ticket, waiter.index, self.with_retries(item, waiter, error))

    def with_retries(self, item: Item, waiter: Waiter, error: ProviderError) -> ProviderError:
        """Return a copy of an error that states the retries of an item on behalf of a waiter."""
        retries = max(0, item.retries - waiter.failures_at_join)
        return error.after_retries(retries, item.failed_at - item.failing_since, self.server)

    def give_up(self, ticket: Ticket, index: int, error: EmbedKitError) -> None:
        """Record the final error of one of a ticket's texts."""
        ticket.failed[index] = error
        ticket.pending -= 1
        self.close_if_done(ticket)

    def deliver(self, request: Request) -> None:
        """Hand out the rows of a request to the callers of its completed items."""
        assert request.rows is not None or not request.done
        rows_by_ticket: dict[Ticket, tuple[list[int], list[int]]] = {}
        paid: Counter[Ticket] = Counter()
        for row, item in enumerate(request.done):
            self.forget(item)
            for waiter in item.waiters:
                ticket = waiter.ticket
                indices, rows = rows_by_ticket.setdefault(ticket, ([], []))
                indices.append(waiter.index)
                rows.append(row)
                if ticket is item.payer:
                    paid[ticket] += 1
                if request.truncated[row]:
                    ticket.truncated.append(waiter.index)
            item.waiters.clear()
        for ticket, (indices, rows) in rows_by_ticket.items():
            assert request.rows is not None
            vectors = request.rows if len(rows) == len(request.rows) else request.rows[rows]
            ticket.response_model = request.response_model or ticket.response_model
            self._hand_out(ticket, indices, vectors, paid=paid[ticket])

    def _hand_out(self, ticket: Ticket, indices: list[int], vectors: Vectors, *, paid: int) -> None:
        """Store a ticket's rows; `paid` of them were sent for it, the others were coalesced."""
        if ticket.closed:
            return
        try:
            check_width(vectors, ticket)
        except BadReplyError as error:
            for index in indices:
                self.give_up(ticket, index, copy.copy(error))
            return
        ticket.rows.put_reply(indices, vectors)
        ticket.pending -= len(indices)
        ticket.sent += paid
        ticket.coalesced += len(indices) - paid
        self.close_if_done(ticket)

    def detach(self, ticket: Ticket) -> None:
        """Remove a ticket from its items; drop the unsent ones that no other ticket waits for."""
        for item in ticket.items:
            item.waiters[:] = [w for w in item.waiters if w.ticket is not ticket]
            if not item.waiters and (item.location is not None or item.missing_pieces):
                self.drop(item)
        for queue in {item.queue for item in ticket.items}:
            queue.tidy()
        ticket.items.clear()

    def close_if_done(self, ticket: Ticket) -> None:
        """Close a ticket if none of its texts is pending any more."""
        if not ticket.closed and ticket.pending == 0:
            self.close(ticket)
            ticket.items.clear()  # an item refers to its payer: the cycle would keep the whole result alive
            self.completed.append(ticket)

    def close(self, ticket: Ticket) -> None:
        """Close a ticket: remove its deadline and its bounds."""
        ticket.closed = True
        self.deadlines.drop(ticket)
        self._dispatcher.leave(ticket)
