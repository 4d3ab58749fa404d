"""Tickets and items: a ticket is one call, an item is one pending text. Tickets refer to items. No I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from embedkit_core.common.errors import EmbedKitError, ProviderError
from embedkit_core.common.types import Cache, Limits, LongText, Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import FLOAT32, DType, PostProcessing, VectorFormat, VectorSpace
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.tokens import estimate_tokens, max_tokens

if TYPE_CHECKING:
    from embedkit_core.common.types import RateSettings
    from embedkit_core.coordination.opening import Coordination
    from embedkit_core.engine.rate_limits.controller import RateController
    from embedkit_core.engine.rate_limits.limiter import LimiterAdapter

NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """Everything of a request except its texts. Texts share a request only if their specs are equal.

    Attributes:
        id: Identifies the request body.
        timeout: Seconds for one request; None for no timeout of the engine.
        limits: The model's limits on a request.
        long_text: The policy for texts that are too long.
        model: The name of the model, for messages and the choice of the rate controller.
        width: The number of values in a row of a reply; None if it is unknown until the first reply.
        body: The request without its texts, as the provider's `request_body()` returns it.
        limiter: A rate limiter that grants a permit for each request.
        dtype: The dtype of a reply.
        fallback_width: A second width that a row of a reply may have.
        post_processing: The conversion of rows before they are cached.
        truncating_body: The body that makes the provider truncate texts, if it can.
        provider_truncates: True if `body` is such a body.
        requests_width: True if `width` is requested from a model that may not support it.
        overhead_tokens: The maximum tokens that a text is billed at in addition to its own.
        sorts_by_length: True if texts of similar length should share requests, as for local models.
        may_truncate_silently: True if the provider may truncate texts without notice, so that texts that are certainly
            too long are handled before they are sent.
        space: The vector space of the rows that are cached.
        coordination: The coordinator of the processes that share the cache, None without one.
    """

    id: bytes
    timeout: float | None
    limits: Limits
    long_text: LongText
    model: str
    width: int | None
    body: Mapping[str, Any] = field(compare=False)
    limiter: LimiterAdapter | None = None
    dtype: DType = "float32"
    fallback_width: int | None = None
    post_processing: PostProcessing | None = None
    truncating_body: Mapping[str, Any] | None = field(default=None, compare=False)
    provider_truncates: bool = False
    requests_width: bool = False
    overhead_tokens: int = 0
    sorts_by_length: bool = False
    may_truncate_silently: bool = False
    space: VectorSpace | None = field(default=None, compare=False)
    coordination: Coordination | None = None

    def truncating(self) -> RequestSpec:
        """Return the spec of the requests that make the provider truncate texts."""
        assert self.truncating_body is not None
        return replace(
            self,
            id=self.id + b"cut",
            body=self.truncating_body,
            truncating_body=None,
            provider_truncates=True,
            limits=replace(self.limits, text_tokens=None),
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that a row of a reply may have; empty if they are unknown."""
        return tuple(width for width in (self.width, self.fallback_width) if width is not None)


class RowBuffer(Protocol):
    """The destination of a ticket's rows."""

    @property
    def width(self) -> int | None:
        """The number of values in a row; None before the first."""
        ...

    def put_reply(self, indices: Sequence[int], vectors: Vectors) -> None:
        """Store rows, one for each index. Called on the engine's thread; the rows do not change later."""
        ...


class LogEvent(NamedTuple):
    """A log line and its level."""

    level: int
    text: str


class Ticket:
    """One call: its texts, its own policy and its results.

    Attributes:
        rows: The destination of the rows.
        pending: The number of texts without a result.
        is_query: True if its texts are queries, which are sent before bulk.
        max_retries: The retries of a text on behalf of this call.
        max_in_flight: The call's bound on the account's requests in flight.
        rates: The call's own limits per minute.
        looked_up_at: The time before its texts were looked up in the cache.
        submitted_at: The time at which the scheduler accepted it.
        deadline: The time at which it stops waiting; inf for none.
        cache: The cache that its rows are written to.
        billing: The meters and budgets that its requests are booked on.
        wake: Called once, on the engine's thread, when nothing is pending any more.
        vector_format: The format of its rows.
        notify: Called on the engine's thread when there are new `log_events`, if the caller can log while it waits.
        log_events: Events for the caller to log.
        items: The items it waits for.
        closed: True if it waits for nothing any more.
        internal_error: The error if the engine itself failed.
        rate_controller: The rate controller of its model.
        sent: Texts that were sent and billed for this call.
        coalesced: Texts that shared the request of another caller.
        failed: The errors of failed texts, by index.
        truncated: The indices of truncated texts.
        response_model: The name of the model, as far as replies state it.
        usage: The requests and tokens that this call pays for.
    """

    __slots__ = (
        "billing",
        "cache",
        "closed",
        "coalesced",
        "deadline",
        "failed",
        "internal_error",
        "is_query",
        "items",
        "log_events",
        "looked_up_at",
        "max_in_flight",
        "max_retries",
        "notify",
        "pending",
        "rate_controller",
        "rates",
        "response_model",
        "rows",
        "sent",
        "submitted_at",
        "truncated",
        "usage",
        "vector_format",
        "wake",
    )

    def __init__(
        self,
        *,
        rows: RowBuffer,
        pending: int,
        is_query: bool,
        max_retries: int,
        max_in_flight: int,
        rates: RateSettings,
        deadline: float,
        cache: Cache | None,
        billing: CallBilling,
        wake: Callable[[], None],
        looked_up_at: float = -math.inf,
        vector_format: VectorFormat = FLOAT32,
    ) -> None:
        self.rows = rows
        self.pending = pending
        self.is_query = is_query
        self.max_retries = max_retries
        self.max_in_flight = max_in_flight
        self.rates = rates
        self.looked_up_at = looked_up_at
        self.submitted_at = 0.0
        self.deadline = deadline
        self.cache = cache
        self.billing = billing
        self.wake = wake
        self.vector_format = vector_format
        self.notify: Callable[[], None] | None = None
        self.log_events: deque[LogEvent] = deque(maxlen=64)
        self.items: list[Item] = []
        self.closed = False
        self.internal_error: ProviderError | None = None
        self.rate_controller: RateController | None = None
        self.sent = 0
        self.coalesced = 0
        self.failed: dict[int, EmbedKitError] = {}
        self.truncated: list[int] = []
        self.response_model: str | None = None
        self.usage = Usage()

    def charge(self, usage: Usage) -> None:
        """Book requests and tokens on this ticket, also after its caller has left."""
        if usage == NO_USAGE:
            return
        self.usage += usage
        for meter in self.billing.meters:
            meter.add(usage)


@dataclass(slots=True)
class Waiter:
    """A ticket that waits for an item.

    Attributes:
        ticket: The ticket.
        index: The position of the text in the ticket.
        failures_at_join: The failures of the item before the ticket joined; they do not count as its retries.
    """

    ticket: Ticket
    index: int
    failures_at_join: int


class ItemQueue(Protocol):
    """The queue of an item; `queues.RequestQueue` is the only implementation."""

    @property
    def spec(self) -> RequestSpec:
        """The spec of the queue's requests."""
        ...

    def enter(self, items: Iterable[Item], *, front: bool = False) -> None:
        """Put items into the queue."""
        ...

    def enter_again(self, item: Item) -> None:
        """Put an item into the queue after a transient failure."""
        ...

    def leave(self, item: Item) -> None:
        """Remove an item from wherever it waits."""
        ...

    def take_unsent(self, item: Item) -> bool:
        """Remove an item that is not sent yet. Return False if it is in flight or waits for a retry."""
        ...

    def promote(self, item: Item) -> None:
        """Turn a waiting bulk item into a query."""
        ...

    def tidy(self) -> None:
        """Remove stale entries."""
        ...

    def plan_requests(self, free_slots: int, now: float) -> None:
        """Set how many texts the requests of the waiting bulk should hold."""
        ...


class Item:
    """One pending text, or a piece of one that is split for the policy "mean".

    Attributes:
        key: The cache key; empty for a piece.
        size: The estimated tokens.
        queue: The queue it belongs to.
        parent: The text that it is a piece of. Pieces share its list of waiters.
        waiters: The tickets that wait for it.
        caches: The caches that its row is written to.
        checked_at: The time since which it is known to be missing from the caches.
        is_claimed: False for a text that is sent even if another process is sending it.
        waits_since: The time at which it first waited for another process; None if it never did.
        location: The queue, group or ledger it waits in, or the `SharedRequests` if it waits for another process; None
            while it is in flight or waits for a retry. A queue may have stale entries, whose location is another.
        payer: The ticket that pays for it.
        reserved: The tokens that the payer's budgets reserve for it.
        failures: The transient failures so far.
        retries: How often it was sent again after them.
        failing_since: The time at which the first request that failed was sent.
        failed_at: The time of the last failure.
        encoding_retries: The refusals of the encoding so far.
        truncations: How often it was truncated or split so far.
        is_truncated: True if its text was truncated.
        piece_vectors: The (UTF-8 bytes, vector) of its pieces that were embedded.
        missing_pieces: The number of pieces without a vector; -1 once the text is complete.
    """

    __slots__ = (
        "caches",
        "checked_at",
        "encoding_retries",
        "failed_at",
        "failing_since",
        "failures",
        "is_claimed",
        "is_query",
        "is_truncated",
        "key",
        "location",
        "missing_pieces",
        "parent",
        "payer",
        "piece_vectors",
        "queue",
        "reserved",
        "retries",
        "size",
        "text",
        "truncations",
        "waiters",
        "waits_since",
    )

    def __init__(
        self, key: bytes, text: str, size: int, queue: ItemQueue, *, is_query: bool, parent: Item | None = None
    ):
        self.key = key
        self.text = text
        self.size = size
        self.queue = queue
        self.is_query = is_query
        self.parent = parent
        self.waiters: list[Waiter] = parent.waiters if parent else []
        self.caches: list[Cache] = []
        self.checked_at = -math.inf
        self.is_claimed = True
        self.waits_since: float | None = None
        self.location: object | None = None
        self.payer: Ticket | None = None
        self.reserved = 0
        self.failures = self.retries = 0
        self.failing_since = self.failed_at = 0.0
        self.encoding_retries = 0
        self.truncations = 0
        self.is_truncated = False
        self.piece_vectors: list[tuple[int, Vectors]] = []
        self.missing_pieces = 0

    def truncate(self, text: str) -> None:
        """Replace the text by its beginning."""
        self.text, self.is_truncated = text, True
        self.size = estimate_tokens(text, text.encode())

    @property
    def pieces(self) -> int:
        """The number of pieces that the text is split into."""
        return self.missing_pieces + len(self.piece_vectors)

    def record_failure(self, sent_at: float, now: float) -> None:
        """Count a transient failure of a request that was sent at `sent_at`."""
        self.failing_since = self.failing_since if self.failures else sent_at
        self.failures += 1
        self.failed_at = now

    @property
    def root(self) -> Item:
        """The text that the caller passed: the parent of a piece, or the item itself."""
        return self.parent or self


@dataclass(slots=True, eq=False)
class AtomicBatch:
    """Items that must be sent together and alone: half of a refused batch."""

    items: list[Item]
    is_query: bool


def max_billed_tokens(item: Item) -> int:
    """Return an upper bound for the billed tokens of a text."""
    return max_tokens(item.text) + item.queue.spec.overhead_tokens


def max_tokens_to_send(text: str, spec: RequestSpec) -> int:
    """Return an upper bound for the billed tokens of a text, including the pieces that "mean" may split it into.

    The overhead is billed for each piece. Pieces have equal lengths, so there are at most twice as many as full pieces
    would be. If the model's limit is unknown, one piece is assumed.
    """
    tokens, limit = max_tokens(text), spec.limits.text_tokens
    pieces = 2 * math.ceil(tokens / limit) if spec.long_text == "mean" and limit and tokens > limit else 1
    return tokens + pieces * spec.overhead_tokens
