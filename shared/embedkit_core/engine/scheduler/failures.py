"""Decisions about the texts of failed requests, as data that the scheduler applies. No I/O.

They depend on the type of the error; each waiter's own `max_retries` limits the retries.
"""

from __future__ import annotations

import random
from math import ceil
from typing import NamedTuple

from embedkit_core.common.errors import (
    AuthenticationError,
    BadReplyError,
    BadRequestError,
    BadTextError,
    EncodingRefusedError,
    ProviderError,
    QuotaError,
    RateLimitError,
    RequestTooLargeError,
    TextTooLongError,
)
from embedkit_core.common.formatting import count_noun
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.engine.batching import RequestCapacity
from embedkit_core.engine.rate_limits.provider_limits import MINUTE
from embedkit_core.engine.scheduler import long_text
from embedkit_core.engine.scheduler.items import AtomicBatch, Item, Ticket, Waiter, max_billed_tokens
from embedkit_core.engine.scheduler.log_events import LogThrottle
from embedkit_core.engine.scheduler.queues import Outage, Request
from embedkit_core.engine.scheduler.retry import RetryPolicy

MAX_ENCODING_RETRIES = 3  # per text, before the refusal of an encoding is final
MAX_TRUNCATIONS = 16  # per text, before its refusal is final
MIN_LONG_TOKENS = 512  # estimated; a shorter text cannot make a request too large by itself
MAX_LIMIT_RATIO = 16  # the model's limit to that of a server's refusal, which may be configured lower
MIN_FAILED_PROBES = 3  # before texts fail that were not sent, also for callers with fewer retries
MAX_PROBE_FAILURES = 8  # consecutive refusals; bisecting 32 texts reaches a single one with the sixth


class Retry(NamedTuple):
    """Send items again at the time `until`, for the waiters that have retries left."""

    items: list[Item]
    until: float


class Requeue(NamedTuple):
    """Put items at the front of their queue."""

    items: list[Item]


class Split(NamedTuple):
    """Send each group as a request of its own, before everything else that waits."""

    groups: list[AtomicBatch]


class Truncate(NamedTuple):
    """Send an item again with the request that asks the provider to truncate it."""

    item: Item


class Fail(NamedTuple):
    """Fail items for all their waiters."""

    items: list[Item]
    error: ProviderError


class FailQueue(NamedTuple):
    """Fail the request's items and everything that waits in its queue: the request itself is at fault."""

    error: ProviderError


Decision = Retry | Requeue | Split | Truncate | Fail | FailQueue


def exhausted(item: Item) -> list[Waiter]:
    """Return the waiters of an item whose retries are used up."""
    return [waiter for waiter in item.waiters if _failures_for(waiter, item) > waiter.ticket.max_retries]


def _failures_for(waiter: Waiter, item: Item) -> int:
    return item.failures - (waiter.failures_at_join if item.parent is None else 0)


class FailurePolicy:
    """The decisions about failed requests, and the update of the rate controller after them."""

    def __init__(self, retry: RetryPolicy, rng: random.Random, log: LogThrottle) -> None:
        self._retry = retry
        self._rng = rng
        self._log = log

    def back_off(self, request: Request, error: ProviderError, now: float) -> float:
        """Update the model's rate controller after a transient failure. Return the seconds until the retry."""
        controller = request.queue.rate_controller
        known = {limit.unit for limit in controller.known_limits()}
        pause = controller.on_failure(request.sent, error, now)
        for limit in controller.known_limits():
            if limit.unit not in known:
                self._log.limit_learned(request, str(limit), now)
        failures = max(item.failures for item in request.items)
        if not request.queue.verified and not request.items[0].is_query:  # so that probes are rare during an outage
            failures = max(failures, len(request.queue.outage.probes))
        delay = self._retry.delay(failures, error, self._rng)
        if (error.retry_after or 0.0) > 0:
            pause = delay
        controller.pause(now + pause)  # one refusal slows down every caller of the model
        return max(delay, pause)

    def exhausts(self, outage: Outage, ticket: Ticket, error: ProviderError, now: float) -> bool:
        """Return True if the server answered nothing for as long as the retries of one text of a ticket may take.

        An HTTP 429 may be a limit per minute, so the outage must be longer than that.
        """
        probes = sum(sent_at >= ticket.submitted_at for sent_at in outage.probes)
        seconds = self._retry.longest(ticket.max_retries)
        if isinstance(error, RateLimitError):
            seconds = max(seconds, MINUTE)
        since = max(outage.probes[0], ticket.submitted_at)
        return probes >= max(ticket.max_retries + 1, MIN_FAILED_PROBES) and now - since >= seconds

    def decide(
        self, request: Request, items: list[Item], error: ProviderError, *, until: float, bound: int, now: float
    ) -> list[Decision]:
        """Decide how to go on with the items of a failed request that still have waiters.

        Args:
            request: The request; its slot is free already.
            items: Those of its items that still have waiters.
            error: The error of the request.
            until: The time of the retry, for a transient failure.
            bound: The number of requests that may be in flight.
            now: The current time.
        """
        if error.retryable:
            return [Retry(items, until)]
        if isinstance(error, EncodingRefusedError) and all(
            item.encoding_retries < MAX_ENCODING_RETRIES for item in items
        ):
            for item in items:
                item.encoding_retries += 1
            return [Requeue(items)]
        # Ignore positions outside the request: the server is wrong.
        if isinstance(error, TextTooLongError) and any(p in error.positions for p in range(len(request.items))):
            return self._shorten_named(request, error)
        if isinstance(error, (TextTooLongError, RequestTooLargeError)):
            return self._halve(request, items, error, now)
        if isinstance(error, BadTextError):
            return self._search(request, items, error, bound)
        lasting = isinstance(error, BadReplyError) and error.lasts
        if lasting or isinstance(error, (AuthenticationError, BadRequestError, QuotaError)):
            # The request itself is at fault: the other texts of this queue would fail too, and may be billed.
            request.queue.verified = False
            return [FailQueue(error)]
        return [Fail(items, error)]

    def _halve(
        self, request: Request, items: list[Item], error: TextTooLongError | RequestTooLargeError, now: float
    ) -> list[Decision]:
        """Halve a request that was too large; a single text that is too large is too long."""
        queue = request.queue
        if isinstance(error, TextTooLongError) or (len(request.items) == 1 and items[0].size >= MIN_LONG_TOKENS):
            return [_shorten(items[0], error)] if len(request.items) == 1 else _halves(items)
        queue.consecutive_refusals += 1
        if len(request.items) > 1:
            queue.capacity.halve([item.size for item in request.items], counts_texts=error.counts_texts)
            texts, tokens = count_noun(queue.capacity.texts, "text"), count_noun(queue.capacity.tokens, "token")
            self._log.limit_learned(request, f"Request size limited to {texts} and {tokens}", now)
            return _halves(items)
        # A short text alone is too large, so the size was never the problem: forget the limits that were learned. If
        # nothing was accepted on the way down, the request itself is at fault.
        queue.capacity = RequestCapacity.from_limits(queue.spec.limits)
        return [FailQueue(error)] if queue.consecutive_refusals > MAX_PROBE_FAILURES else [Fail(items, error)]

    def _search(self, request: Request, items: list[Item], error: BadTextError, bound: int) -> list[Decision]:
        """Bisect a refused request to find the bad text; a text that is refused alone fails alone.

        Consecutive refusals make the queue unverified: it goes back to one request at a time. If these are refused
        too, down to single texts chosen at random, the request itself is at fault and the whole queue fails.
        """
        queue = request.queue
        queue.consecutive_refusals += 1
        if queue.verified and queue.consecutive_refusals > bound:
            queue.verified = False
        keys = frozenset(item.key for item in request.items)
        if not queue.verified and queue.in_flight == 0 and keys != queue.refused_keys:
            queue.probe_failures += 1
        queue.refused_keys = keys
        if queue.probe_failures >= MAX_PROBE_FAILURES:
            queue.probe_failures = 0
            return [FailQueue(error.for_request())]
        if len(items) == 1:
            error.text_is_cause = queue.verified
            return [Fail(items, error)]
        self._rng.shuffle(items)
        return _halves(items)

    @staticmethod
    def _shorten_named(request: Request, error: TextTooLongError) -> list[Decision]:
        """Shorten the texts that the error refers to; send the others again."""
        waiting = {position: item for position, item in enumerate(request.items) if item.waiters}
        decisions = [
            _shorten(item, error.for_text(error.positions[position]))
            for position, item in waiting.items()
            if position in error.positions
        ]
        return [*decisions, Requeue([item for position, item in waiting.items() if position not in error.positions])]


def _halves(items: list[Item]) -> list[Decision]:
    # A query that joined while the batch was in flight is sent with queries only.
    bulk = [item for item in items if not item.is_query]
    queries: list[Item] = []
    if 0 < len(bulk) < len(items):
        queries, items = [item for item in items if item.is_query], bulk
    middle = (len(items) + 1) // 2
    return [
        Requeue(queries),
        Split([AtomicBatch(half, items[0].is_query) for half in (items[:middle], items[middle:])]),
    ]


def _shorten(item: Item, error: TextTooLongError | RequestTooLargeError) -> Decision:
    """Truncate, split or fail one text that is too long, as `on_long_text` of the queue demands."""
    tokens, limit = _plausible_counts(item, error) if isinstance(error, TextTooLongError) else (None, None)
    spec = item.queue.spec
    item.truncations += 1
    if spec.long_text == "truncate" and spec.truncating_body is not None:
        return Truncate(item)
    may_shorten = item.truncations <= MAX_TRUNCATIONS
    # A server that truncates to its limit in tokens may still refuse a text for its characters.
    counts_characters = isinstance(error, TextTooLongError) and error.unit == "characters"
    if spec.long_text == "truncate" and may_shorten and (counts_characters or not spec.provider_truncates):
        shorter = long_text.shorten(item.text, tokens, limit)
        if shorter:
            item.truncate(shorter)
            return Split([AtomicBatch([item], item.is_query)])
    if spec.long_text == "mean" and may_shorten and len(item.text) > 1:
        texts = long_text.split(item.text, tokens, limit)
        if item.root.pieces + len(texts) <= _max_pieces(item.root):
            return Requeue(split_into_pieces(item, texts))
    return Fail([item], error)


def _plausible_counts(item: Item, error: TextTooLongError) -> tuple[int | None, int | None]:
    """Return the length and limit of a refusal, corrected if they are absurd: a server may state anything.

    No text has more tokens than its upper bound. A limit far below the model's own shortens or splits a text only by
    `MAX_LIMIT_RATIO` at once.
    """
    tokens, limit, known = error.tokens, error.limit, item.queue.spec.limits.text_tokens
    if tokens is None or limit is None:
        return tokens, limit
    tokens = min(tokens, max_billed_tokens(item))
    if known is not None and limit * MAX_LIMIT_RATIO < known:
        limit = max(limit, ceil(tokens / MAX_LIMIT_RATIO))
    return tokens, limit


def _max_pieces(root: Item) -> int:
    """Return the maximum number of pieces of a text: enough for a limit far below the model's own."""
    limit = root.queue.spec.limits.text_tokens or MIN_LONG_TOKENS
    return MAX_LIMIT_RATIO * ceil(max_billed_tokens(root) / limit)


def split_into_pieces(item: Item, texts: list[str]) -> list[Item]:
    """Return the pieces of an item with these texts; the reply to the last one completes it."""
    root = item.root
    root.missing_pieces += len(texts) - (1 if item.parent else 0)
    pieces = []
    for text in texts:
        size = estimate_tokens(text, text.encode())
        piece = Item(b"", text, size, item.queue, is_query=item.is_query, parent=root)
        piece.truncations = item.truncations
        pieces.append(piece)
    return pieces
