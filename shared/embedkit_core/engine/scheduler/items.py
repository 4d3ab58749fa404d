"""What the scheduler moves about: a caller holds a ticket, a text is an item, tickets point to items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from embedkit_core.common.errors import EmbedKitError, ProviderError
from embedkit_core.common.types import Batch, Cache, Limits, LongText, Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import FLOATS, DType, Finish, Form
from embedkit_core.costs.billing import Purse

if TYPE_CHECKING:
    from embedkit_core.engine.rate_limits.controller import Pace, Sent
    from embedkit_core.engine.rate_limits.limiter import Gate
    from embedkit_core.engine.rate_limits.user_limits import Rates
    from embedkit_core.engine.scheduler.queues import LaneQueue

NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Lane:
    """Everything of a request but its texts; texts share a request only in the same lane.

    `wire_id` tells what is sent apart, `wire` is what is sent, `model` a name for messages. A row of a reply has
    `width` numbers of `dtype`, or is `wider`; it becomes the one that is kept by `finish`. Each request passes the
    `gate` of a rate limiter, if there is one. Texts known to be too long are sent by `cutting`, where the provider cuts
    them if it is asked to, in a lane that `cuts`. `asks_width` says that the provider was asked for that width, of a
    model of which nobody here knows whether it has it. A text is billed at `added_tokens` beside its own at most.
    A lane that `sorts` has texts of like length share requests, as models on this machine like it.
    """

    wire_id: bytes
    timeout: float | None
    limits: Limits
    long_text: LongText
    model: str
    width: int | None
    wire: Mapping[str, Any] = field(compare=False)
    gate: Gate | None = None
    dtype: DType = "float32"
    wider: int | None = None
    finish: Finish | None = None
    cutting: Mapping[str, Any] | None = field(default=None, compare=False)
    cuts: bool = False
    asks_width: bool = False
    added_tokens: int = 0
    sorts: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers a row of a reply may have; none where only a reply can tell."""
        return tuple(width for width in (self.width, self.wider) if width is not None)


class Sink(Protocol):
    """Where the engine puts the rows of a ticket."""

    @property
    def width(self) -> int | None:
        """How many numbers the rows have that are already there; None before the first."""
        ...

    def put_wants(self, wants: Sequence[int], vectors: Vectors) -> None:
        """Take the caller's rows, one for each want, which nobody changes any more; called on the engine's side."""
        ...


class Ticket:
    """One caller's call: what it waits for, its own policy, and what came of it; `broken` by a defect of ours.

    `pending` is how many of its wants are neither served nor given up, `deadline` the time after which it waits no
    more. Rows of the form `kept` become its caller's by `view`. `wake` is called once, on the engine's side, when
    nothing is pending any more; `stir`, where a caller can be told more, when there are `notes` for it to log.
    """

    __slots__ = (
        "bound",
        "broken",
        "cache",
        "closed",
        "deadline",
        "failed",
        "items",
        "joined",
        "kept",
        "max_retries",
        "notes",
        "pace",
        "pending",
        "purse",
        "rates",
        "rows",
        "sent",
        "stir",
        "truncated",
        "urgent",
        "usage",
        "view",
        "wake",
    )

    def __init__(
        self,
        *,
        rows: Sink,
        pending: int,
        urgent: bool,
        max_retries: int,
        bound: int,
        rates: Rates,
        deadline: float,
        cache: Cache | None,
        purse: Purse,
        wake: Callable[[], None],
        kept: Form = FLOATS,
        view: Finish | None = None,
    ) -> None:
        self.rows = rows
        self.pending = pending
        self.urgent = urgent
        self.max_retries = max_retries
        self.bound = bound
        self.rates = rates
        self.deadline = deadline
        self.cache = cache
        self.purse = purse
        self.wake = wake
        self.kept = kept
        self.view = view
        self.stir: Callable[[], None] | None = None
        self.notes: deque[Note] = deque(maxlen=64)
        self.items: list[Item] = []
        self.closed = False
        self.broken: ProviderError | None = None
        self.pace: Pace | None = None
        self.sent = 0
        self.joined = 0
        self.failed: dict[int, EmbedKitError] = {}
        self.truncated: list[int] = []
        self.usage = Usage()

    def charge(self, usage: Usage) -> None:
        """Book requests and tokens that this ticket pays for, also after its caller has left."""
        if usage == NOTHING:
            return
        self.usage += usage
        for meter in self.purse.meters:
            meter.add(usage)


@dataclass(slots=True)
class Waiter:
    """One ticket's wish for one item: `index` in the ticket, `joined_at` the item's failures when it joined."""

    ticket: Ticket
    index: int
    joined_at: int


class Item:
    """One text under way.

    `home` is the queue or group it waits in, None while it flies or is parked; a queue may hold stale entries, whose
    home is elsewhere. `reserved` are the tokens that its `payer`'s budgets hold for it. A piece of a text that is split
    for "mean" has a `parent` and shares its list of waiters.
    """

    __slots__ = (
        "asks",
        "caches",
        "cut",
        "cuts",
        "failures",
        "home",
        "key",
        "lane",
        "missing",
        "parent",
        "parts",
        "payer",
        "reserved",
        "size",
        "text",
        "urgent",
        "waiters",
    )

    def __init__(self, key: bytes, text: str, size: int, lane: LaneQueue, *, urgent: bool, parent: Item | None = None):
        self.key = key
        self.text = text
        self.size = size
        self.lane = lane
        self.urgent = urgent
        self.parent = parent
        self.waiters: list[Waiter] = parent.waiters if parent else []
        self.caches: list[Cache] = []
        self.home: object | None = None
        self.payer: Ticket | None = None
        self.reserved = 0
        self.failures = 0
        self.asks = 0
        self.cuts = 0
        self.cut = False
        self.parts: list[tuple[int, Vectors]] = []
        self.missing = 0

    @property
    def root(self) -> Item:
        """The text as a caller asked for it."""
        return self.parent or self


@dataclass(slots=True, eq=False)
class Group:
    """Items that must travel together and without others: half of a batch that was refused."""

    items: list[Item]
    urgent: bool


@dataclass(slots=True, eq=False)
class Flight:
    """One request under way, and once it is answered the items it finished, their rows, and who has kept them.

    `batch` and `sent` are made when it is sent: until a rate limiter lets it, its items may still lose their callers.
    """

    lane: LaneQueue
    items: list[Item]
    batch: Batch = field(init=False, repr=False)
    sent: Sent = field(init=False, repr=False)
    done: list[Item] = field(default_factory=list)
    rows: Vectors | None = None
    flags: list[bool] = field(default_factory=list)
    kept: list[Cache] = field(default_factory=list)

    @property
    def payer(self) -> Ticket:
        """Who is charged for the request itself."""
        payer = self.items[0].payer
        assert payer is not None
        return payer

    @property
    def size(self) -> int:
        """The request's tokens, estimated."""
        return sum(item.size for item in self.items)

    def late(self) -> bool:
        """Tell whether a cache wants rows of this request that it has not been given."""
        return any(not _among(cache, self.kept) for item in self.done for cache in item.caches)

    def to_keep(self) -> list[tuple[Cache, list[int]]]:
        """Give each cache that is to keep rows of this request now, with their places in `done`."""
        keep: dict[int, tuple[Cache, list[int]]] = {}
        for place, item in enumerate(self.done):
            for cache in item.caches:
                if not _among(cache, self.kept):
                    keep.setdefault(id(cache), (cache, []))[1].append(place)
        self.kept += [cache for cache, _ in keep.values()]
        return list(keep.values())


@dataclass(slots=True)
class Step:
    """What the shell is to do: ask rate limiters, send, keep rows, wake callers, and call again at `wake_at`."""

    asks: list[Flight] = field(default_factory=list)
    sends: list[Flight] = field(default_factory=list)
    commits: list[Flight] = field(default_factory=list)
    finished: list[Ticket] = field(default_factory=list)
    wake_at: float | None = None


def _among(cache: Cache, caches: list[Cache]) -> bool:
    return any(cache is other for other in caches)  # by identity: a cache of the user's may be equal to another


class Note(NamedTuple):
    """A line for the log."""

    level: int
    text: str
