"""The scheduler: a state machine that decides which texts are sent when, and which caller gets which row. No I/O.

It has no thread, clock, socket or lock: events are method calls with the current time, and `poll` returns the actions
to take. Its invariants are numbered in CONTRIBUTING.md and tested by the Hypothesis state machine in tests/invariants.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from embedkit_core.common.errors import BadReplyError, ProviderError, TextTooLongError
from embedkit_core.common.types import Batch, Reply
from embedkit_core.common.usage import Usage
from embedkit_core.engine.scheduler import long_text
from embedkit_core.engine.scheduler.dispatch import Dispatcher
from embedkit_core.engine.scheduler.failures import (
    Decision,
    Fail,
    FailQueue,
    FailurePolicy,
    Requeue,
    Retry,
    Split,
    Truncate,
    exhausted,
    split_into_pieces,
)
from embedkit_core.engine.scheduler.funding import BudgetLedger
from embedkit_core.engine.scheduler.items import Item, RequestSpec, Ticket, Waiter
from embedkit_core.engine.scheduler.log_events import LogThrottle
from embedkit_core.engine.scheduler.queues import Actions, Outage, Request, RequestQueue
from embedkit_core.engine.scheduler.recent import RecentRow, RecentRows
from embedkit_core.engine.scheduler.registry import Registry
from embedkit_core.engine.scheduler.replies import believable_bill, complete_items, post_process, validate
from embedkit_core.engine.scheduler.retry import RetryPolicy, RetryQueue
from embedkit_core.engine.scheduler.shared_requests import Found, SharedRequests

NONE_TOO_LONG: Mapping[int, int] = MappingProxyType({})


class Scheduler:
    """The pending calls, texts and requests of one account.

    Events, each followed by a `poll`:
        submit: A caller has texts to embed.
        withdraw: A caller left.
        permit_granted, limiter_failed: A rate limiter answered a request in `Actions.acquire`.
        shared.granted, shared.unreachable: A coordinator answered a request in `Actions.begin`, or did not.
        shared.checked: A coordinator answered `Actions.check`.
        looked_up: The caches of items in `Actions.look_up` were read.
        replied, failed: The provider answered a request in `Actions.send`.
        committed: The rows of a request in `Actions.commit` are in their caches.
        stored: Other machines can read these rows too.
        stop: The process ends.

    Actions, returned by `poll`:
        acquire: Acquire a permit for a request.
        begin, end, check: Ask a coordinator for a request, end a lease, ask which leases have ended.
        look_up: Read the caches of items again.
        send: Send a request.
        commit: Write the rows of a request to caches.
        wake: Wake a caller whose ticket is complete.
        wake_at: Poll again at this time.

    Attributes:
        recent: Rows that were completed during open cache look-ups.
        dispatcher: The queues, and the choice of the next request.
        retry_queue: The items that wait for a retry.
        ledger: The budget reservations, and the items that wait for budget.
        registry: The pending items and tickets.
        shared: The requests that several processes coordinate.
        log: The log events for callers.
    """

    def __init__(
        self,
        *,
        in_flight: int | None = None,
        rng: random.Random,
        retry: RetryPolicy | None = None,
        request_poll: Callable[[], object] = lambda: None,
        server: str = "the server",
    ) -> None:
        """Create an idle scheduler.

        Args:
            in_flight: The provider's bound on requests in flight.
            rng: The source of jitter.
            retry: The delays between retries.
            server: The server's name in errors.
            request_poll: Called if budget was released by another account's bill, so that a `poll` may send more.
        """
        self.recent = RecentRows()
        self.dispatcher = Dispatcher(max_in_flight=in_flight, rng=rng)
        self.retry_queue = RetryQueue()
        self.ledger = BudgetLedger(request_poll)
        self.registry = Registry(self.dispatcher, self.ledger, server)
        self.shared = SharedRequests(self.dispatcher, self.ledger, self.registry, self.retry_queue, rng, self._send)
        self.log = LogThrottle()
        self._failures = FailurePolicy(retry or RetryPolicy(), rng, self.log)
        self._permitted: list[Request] = []
        self._actions = Actions()

    # Events

    def submit(
        self,
        ticket: Ticket,
        spec: RequestSpec,
        texts: Sequence[tuple[bytes, str, int]],
        now: float,
        too_long: Mapping[int, int] = NONE_TOO_LONG,
    ) -> None:
        """Accept a ticket with its texts as (key, text, size): join pending items, queue the others.

        Args:
            ticket: The ticket.
            spec: The spec of its requests.
            texts: Its texts.
            now: The current time.
            too_long: The fewest tokens of the texts that are certainly too long, by index; for a provider that may
                truncate silently.
        """
        queue = self.dispatcher.queue(spec)
        if queue.outage.rounds and not any(item.queue is queue for item in self.registry.items.values()):
            queue.outage = Outage()  # no text waits for the next probe, so send one now
        self.dispatcher.enter(ticket, queue, now)
        self.registry.deadlines.add(ticket)
        fresh: list[Item] = []
        completed: list[tuple[Item, RecentRow]] = []
        long: list[tuple[Item, int]] = []
        for index, (key, text, size) in enumerate(texts):
            item = self.registry.items.get(key)
            if item is None:
                item = self.registry.items[key] = Item(key, text, size, queue, is_query=ticket.is_query)
                if spec.truncating_body is not None and queue.is_surely_too_long(size):
                    self._truncate_at_provider(item)
                recent = self.recent.get(key)
                if recent is not None:
                    completed.append((item, recent))
                elif index in too_long:
                    long.append((item, too_long[index]))
                else:
                    fresh.append(item)
            else:
                self._join(item, ticket, queue, now)
            item.waiters.append(Waiter(ticket, index, item.failures))
            item.checked_at = max(item.checked_at, ticket.looked_up_at)
            if ticket.cache is not None and not any(cache is ticket.cache for cache in item.caches):
                item.caches.append(ticket.cache)
            ticket.items.append(item)
        for item, tokens in long:
            fresh += self._apply_long_text_rule(item, tokens)
        if spec.sorts_by_length:
            fresh.sort(key=lambda item: -item.size)
        self._take_recent(queue, completed)
        # Items that are surely too long belong to a second queue.
        for target in dict.fromkeys([queue, *(item.queue for item in fresh)]) if spec.truncating_body else (queue,):
            target.enter([item for item in fresh if item.queue is target] if spec.truncating_body else fresh)
            if fresh and not ticket.is_query:
                target.plan_requests(self.dispatcher.free_slots(), now)
        self.registry.close_if_done(ticket)

    def _join(self, item: Item, ticket: Ticket, queue: RequestQueue, now: float) -> None:
        """Prepare a pending item for one more waiter: its budget, its priority, its rate limiter."""
        for held in self.ledger.retry(item):
            held.queue.enter([held])
        if ticket.is_query and not item.is_query:
            item.queue.promote(item)
        # A caller without a rate limiter must not wait for another caller's.
        if queue.spec.limiter is None and item.queue.spec.limiter is not None and item.queue.take_unsent(item):
            item.queue = queue
            queue.enter([item])
            if not item.is_query:
                queue.plan_requests(self.dispatcher.free_slots(), now)

    def _apply_long_text_rule(self, item: Item, tokens: int) -> list[Item]:
        """Truncate, split or fail a new item of at least `tokens` tokens. Return the items to send."""
        spec = item.queue.spec
        limit = spec.limits.text_tokens
        assert limit is not None
        if spec.long_text == "mean":
            return split_into_pieces(item, long_text.split_to_fit(item.text, max(tokens, item.size), limit))
        if spec.long_text == "truncate" and (text := long_text.shorten(item.text, tokens, limit)):
            item.truncate(text)
            return [item]
        provider = spec.model.partition(":")[0]
        self.registry.fail([item], TextTooLongError(limit=limit, provider=provider, model=spec.model))
        return []

    def _truncate_at_provider(self, item: Item) -> None:
        """Move an item to the queue whose requests ask the provider to truncate texts."""
        spec = item.queue.spec
        item.is_truncated, item.queue = True, self.dispatcher.queue(spec.truncating())
        if spec.limits.text_tokens is not None:  # the provider bills no more
            item.size = min(item.size, spec.limits.text_tokens)

    def withdraw(self, ticket: Ticket) -> None:
        """Remove a caller. Texts without another caller are dropped if unsent, and completed and cached if sent."""
        if not ticket.closed:
            self.registry.close(ticket)
            self.registry.detach(ticket)

    def permit_granted(self, request: Request) -> None:
        """Accept a rate limiter's permit for a request; the next poll sends it."""
        request.queue.awaiting_permit = None
        self._permitted.append(request)

    def limiter_failed(self, request: Request, error: ProviderError) -> None:
        """Accept the failure of a rate limiter: fail the whole queue."""
        request.queue.awaiting_permit = None
        self.registry.drop_unwanted(request.items)
        self._fail_queue(request, error)

    def replied(self, request: Request, reply: Reply, now: float) -> None:
        """Accept the reply to a request. Its rows are committed before any caller gets them."""
        queue = request.queue
        try:
            validate(reply, len(request.items), queue.width, queue.spec)
            width, reply = reply.vectors.shape[1], post_process(reply, queue.spec)
        except BadReplyError as error:
            error.tokens = getattr(reply, "tokens", None)
            self.failed(request, error, now)
            return
        # The bill of truncated texts is no measure of the estimate.
        queue.rate_controller.on_reply(
            request.sent, None if queue.spec.provider_truncates else reply.tokens, reply.rate_limits, now
        )
        self.dispatcher.spreader.replied(now - request.sent.at, is_query=request.is_query)
        queue.consecutive_refusals = queue.probe_failures = 0
        queue.outage = Outage()
        if not queue.verified:
            queue.verified = True
            queue.plan_requests(self.dispatcher.free_slots() + 1, now)
        queue.width = queue.width or width
        request.billed = believable_bill(request, reply.tokens)
        self.ledger.settle(request, request.billed)
        self._requeue_released()
        complete_items(request, reply)
        self._actions.commit.append(request)

    def failed(self, request: Request, error: ProviderError, now: float) -> None:
        """Accept the failure of a request, and apply the decisions of the failure policy."""
        self.ledger.settle_failure(request, error)
        self._requeue_released()
        queue = request.queue
        queue.rate_controller.record_failure(error, now)
        delay = self._failures.back_off(request, error, now) if error.retryable else 0.0
        self.dispatcher.release_slot(request)
        self.shared.end(request, pause=queue.rate_controller.pause_remaining(now) if error.retry_after else 0.0)
        if not error.retryable:
            queue.outage = Outage()  # the server works
        backoff = queue.rate_controller.pause_remaining(now) or delay
        is_probe = error.retryable and queue.record_failure(request.sent.at, now + backoff, now)
        items = self.registry.drop_unwanted(request.items)
        if items:
            bound = self.dispatcher.max_in_flight()
            decisions = self._failures.decide(request, items, error, until=now + delay, bound=bound, now=now)
            self._apply(decisions, request, error, now)
        if is_probe:
            self._fail_exhausted_callers(queue, error, now)

    def _apply(self, decisions: Sequence[Decision], request: Request, error: ProviderError, now: float) -> None:
        for decision in decisions:
            match decision:
                case Retry(items, until):
                    self._retry(items, until, request, error, now)
                case Requeue(items):
                    request.queue.enter(items, front=True)
                case Split(groups):
                    for group in groups:
                        request.queue.enter_group(group)
                case Truncate(item):
                    self._truncate_at_provider(item)
                    item.queue.enter([item], front=True)
                case Fail(items, reason):
                    self.registry.fail(items, reason)
                case FailQueue(reason):
                    self._fail_queue(request, reason)

    def _retry(self, items: list[Item], until: float, request: Request, error: ProviderError, now: float) -> None:
        """Schedule the retry of items, without the waiters whose retries are used up."""
        again: list[Item] = []
        for item in items:
            item.record_failure(request.sent.at, now)
            for waiter in exhausted(item):
                item.waiters.remove(waiter)
                self.registry.fail_waiter(item, waiter, error)
            if item.waiters:
                again.append(item)
            else:
                self.registry.drop_piece(item)
        if again:
            self.retry_queue.add(again, until=until)
            self.log.retrying(request, error, len(again), until - now, now)

    def _fail_exhausted_callers(self, queue: RequestQueue, error: ProviderError, now: float) -> None:
        """Fail the waiting texts of the callers that have waited long enough for the end of an outage."""
        waiting = [item for item in self.registry.items.values() if item.queue is queue]
        tickets = {waiter.ticket for item in waiting for waiter in item.waiters}
        gave_up = {ticket for ticket in tickets if self._failures.exhausts(queue.outage, ticket, error, now)}
        retries, seconds = len(queue.outage.probes) - 1, now - queue.outage.probes[0]
        self.registry.fail_for(gave_up, waiting, error.after_retries(retries, seconds, self.registry.server))

    def _fail_queue(self, request: Request, error: ProviderError) -> None:
        """Fail the texts of a request and of its queue."""
        queue = request.queue
        waiting = [item for item in self.registry.items.values() if item.queue is queue and item.location is not None]
        waiting += [item for item in self.retry_queue.items() if item.queue is queue]
        awaiting_permit = queue.awaiting_permit.items if queue.awaiting_permit is not None else []
        self.registry.fail([item for item in [*request.items, *waiting, *awaiting_permit] if item.waiters], error)

    def committed(self, request: Request, *, is_stored: bool = True) -> None:
        """Hand out the committed rows of a request, and free its slot.

        If other machines cannot read them yet (`is_stored`), its claims last until `stored`.
        """
        request.unstored += not is_stored
        if request.needs_another_commit():  # a caller with another cache joined during the commit
            self._actions.commit.append(request)
            return
        self.dispatcher.release_slot(request)
        self.recent.add(request)
        self.registry.deliver(request)
        request.delivered = True
        self.shared.committed(request)

    def stored(self, request: Request) -> None:
        """Accept that the rows of a commit are stored where other machines read them."""
        request.unstored -= 1
        if request.delivered:
            self.shared.committed(request)

    def looked_up(self, items: list[Item], found: Found, started_at: float) -> None:
        """Accept what was read from the caches of items that another process may have completed."""
        for request in self.shared.looked_up(items, found, started_at):
            self.committed(request)

    def owns(self, request: Request) -> bool:
        """Return True if a request belongs to this scheduler."""
        return request.queue.busy is self.dispatcher.busy

    def stop(self) -> None:
        """Send no more requests. Replies to requests in flight are still accepted."""
        self.shared.stop()

    # Actions

    def poll(self, now: float) -> Actions:
        """Fill the free slots. Return the actions since the last call."""
        self.registry.expire(now)
        self._requeue_released()
        for item in self.registry.drop_unwanted(self.retry_queue.due(now)):
            item.queue.enter_again(item)
        self.dispatcher.wake_at, self.dispatcher.long_waits = math.inf, {}
        if not self.shared.stopped:
            self.shared.send_impatient_queries(now)
            self.shared.send_due(now)
            self._send_permitted(now)
            self._fill_slots(now)
            for queue, (header, seconds) in self.dispatcher.long_waits.items():
                waiting = (item for item in self.registry.items.values() if item.queue is queue)
                self.log.waiting_for_quota(queue.spec.model, waiting, header, seconds, now)
        self.recent.forget()
        actions, self._actions = self._actions, Actions()
        self.shared.add_actions(actions, now)
        actions.wake, self.registry.completed = self.registry.completed, []
        times = [*self.retry_queue.next_due(), *self.registry.deadlines.next_due(), self.dispatcher.wake_at]
        times += self.shared.next_due()
        actions.wake_at = min((at for at in times if at < math.inf), default=None)
        return actions

    def _requeue_released(self) -> None:
        """Return the items to the front of their queues that were held until budget was released."""
        for item in reversed(self.ledger.take_released()):
            if item.waiters:
                item.queue.enter([item], front=True)
            else:
                self.registry.drop(item)

    @property
    def in_flight(self) -> int:
        """The number of requests that are in flight or being committed."""
        return self.dispatcher.in_flight

    def _fill_slots(self, now: float) -> None:
        while True:
            self._requeue_released()
            request = self.dispatcher.next_request(now)
            if request is None:
                return
            if request.queue.spec.limiter is not None:  # it takes no slot until it has its permit
                request.queue.awaiting_permit = request
                self._actions.acquire.append(request)
            elif self._reserve(request):
                self._start(request, now)
            else:
                continue
            self.dispatcher.count_turn()

    def _send_permitted(self, now: float) -> None:
        """Send the requests that have their permit, without texts that have no waiter any more."""
        for request in list(self._permitted):
            if self.dispatcher.free_slots() and self.dispatcher.may_send(request, now):
                self._permitted.remove(request)
                request.items = self.registry.drop_unwanted(request.items)
                if request.items and self._reserve(request):
                    self._start(request, now)

    def _reserve(self, request: Request) -> bool:
        """Reserve budget for a request. Return True if any text is left to send."""
        funding = self.ledger.reserve(request)
        for waiter, refusal in funding.refused:
            self.registry.give_up(waiter.ticket, waiter.index, refusal)
        for item in funding.unwanted:
            self.registry.drop_piece(item)
        return bool(funding.paid)

    def _start(self, request: Request, now: float) -> None:
        """Send a request, or ask its coordinator first."""
        self.dispatcher.take_slot(request, now)
        if request.queue.spec.coordination is None:
            self._send(request)
        else:
            self.shared.begin(request)

    def _send(self, request: Request) -> None:
        """Send a request that holds a slot."""
        spec = request.queue.spec
        sent_before = [item for item in request.items if item.failures]
        for item in sent_before:
            item.retries += 1
        request.payer.charge(Usage(requests=1, retries=int(bool(sent_before))))
        request.batch = Batch([item.text for item in request.items], spec.body, spec.timeout, spec.widths)
        self._actions.send.append(request)

    # Rows

    def _take_recent(self, queue: RequestQueue, completed: list[tuple[Item, RecentRow]]) -> None:
        """Hand out rows that were completed since the caller's look-up; commit them first if its cache lacks them."""
        for item, recent in completed:
            request = Request(queue, [], [item], recent.row[None, :], [recent.truncated])
            request.written_to = list(recent.caches)
            self.committed(request)
