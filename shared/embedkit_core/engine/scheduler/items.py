"""Tickets and items: a caller holds a ticket, a text under way is an item, tickets refer to items. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from embedkit_core.common.errors import EmbedKitError, ProviderError
from embedkit_core.common.types import Cache, Limits, LongText, Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import FLOAT32, DType, PostProcessing, VectorFormat
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.tokens import max_tokens

if TYPE_CHECKING:
    from embedkit_core.engine.rate_limits.controller import RateController
    from embedkit_core.engine.rate_limits.limiter import LimiterAdapter
    from embedkit_core.engine.rate_limits.user_limits import RateSettings

NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """Everything of a request but its texts; texts share a request only in the same lane.

    `wire_id` tells what is sent apart, `wire` is what is sent, `model` a name for messages. A row of a reply has
    `width` numbers of `dtype`, or is `wider`; it becomes the one that is kept by `finish`. Each request passes the
    `gate` of a rate limiter, if there is one. Texts known to be too long are sent by `cutting`, where the provider cuts
    them if it is asked to, in a lane that `cuts`. `requests_width`: the provider was asked for that width, of a
    model of which nobody here knows whether it has it. A text is billed at `overhead_tokens` beside its own at most.
    A lane that `sorts` has texts of like length share requests, as models on this machine like it.
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

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers a row of a reply may have; none where only a reply can tell."""
        return tuple(width for width in (self.width, self.fallback_width) if width is not None)


class RowBuffer(Protocol):
    """Where the engine puts the rows of a ticket."""

    @property
    def width(self) -> int | None:
        """How many numbers the rows have that are already there; None before the first."""
        ...

    def put_wants(self, wants: Sequence[int], vectors: Vectors) -> None:
        """Take the caller's rows, one for each want, which nobody changes any more; called on the engine's side."""
        ...


class LogEvent(NamedTuple):
    """A line for the log."""

    level: int
    text: str


class Ticket:
    """One caller's call: what it waits for, its own policy, and what came of it; `broken` by a defect of ours.

    `pending` is how many of its wants are neither served nor given up, `deadline` the time after which it waits no
    more, `form` that of its rows. `wake` is called once, on the engine's side, when nothing is pending any more;
    `stir`, where a caller can be told more, when there are `notes` for it to log.
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
        "max_in_flight",
        "max_retries",
        "notify",
        "pending",
        "rate_controller",
        "rates",
        "rows",
        "sent",
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
        vector_format: VectorFormat = FLOAT32,
    ) -> None:
        self.rows = rows
        self.pending = pending
        self.is_query = is_query
        self.max_retries = max_retries
        self.max_in_flight = max_in_flight
        self.rates = rates
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
        self.usage = Usage()

    def charge(self, usage: Usage) -> None:
        """Book requests and tokens that this ticket pays for, also after its caller has left."""
        if usage == NO_USAGE:
            return
        self.usage += usage
        for meter in self.billing.meters:
            meter.add(usage)


@dataclass(slots=True)
class Waiter:
    """One ticket's wish for one item: `index` in the ticket, `failures_at_join` the item's failures when it joined."""

    ticket: Ticket
    index: int
    failures_at_join: int


class ItemQueue(Protocol):
    """What an item does with the queue it belongs to; `queues.RequestQueue` is the one implementation."""

    @property
    def spec(self) -> RequestSpec:
        """The specification of the queue's requests."""
        ...

    def enter(self, items: Iterable[Item], *, front: bool = False) -> None:
        """Put items into the queue."""
        ...

    def leave(self, item: Item) -> None:
        """Remove an item from wherever it waits."""
        ...

    def take_unsent(self, item: Item) -> bool:
        """Remove an item that is not sent yet. Return False if it is in flight or between two tries."""
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
    """One text under way.

    `home` is the queue or group it waits in, None while it flies or is parked; a queue may hold stale entries, whose
    home is elsewhere. `reserved` are the tokens that its `payer`'s budgets hold for it. A piece of a text that is split
    for "mean" has a `parent` and shares its list of waiters.
    """

    __slots__ = (
        "caches",
        "encoding_retries",
        "failures",
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
        "size",
        "text",
        "truncations",
        "waiters",
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
        self.location: object | None = None
        self.payer: Ticket | None = None
        self.reserved = 0
        self.failures = 0
        self.encoding_retries = 0
        self.truncations = 0
        self.is_truncated = False
        self.piece_vectors: list[tuple[int, Vectors]] = []
        self.missing_pieces = 0

    @property
    def root(self) -> Item:
        """The text as a caller asked for it."""
        return self.parent or self


@dataclass(slots=True, eq=False)
class AtomicBatch:
    """Items that must travel together and without others: half of a batch that was refused."""

    items: list[Item]
    is_query: bool


def max_billed_tokens(item: Item) -> int:
    """Give how many tokens a text may be billed at, at most."""
    return max_tokens(item.text) + item.queue.spec.overhead_tokens


def max_tokens_to_send(text: str, lane: RequestSpec) -> int:
    """Give how many tokens a text may be billed at, at most, in as many pieces as "mean" may have to cut it into.

    Each is sent with the prompt. Pieces are of equal length, so that twice as many as would be full suffice; where the
    limit is not known, nor is their number.
    """
    tokens, limit = max_tokens(text), lane.limits.text_tokens
    pieces = 2 * ceil(tokens / limit) if lane.long_text == "mean" and limit and tokens > limit else 1
    return tokens + pieces * lane.overhead_tokens
