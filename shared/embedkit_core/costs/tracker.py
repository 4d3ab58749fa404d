"""Usage of a block of code: `with track_usage() as usage:`.

A tracker is active in the context (contextvars) of the block. It includes tasks, and threads that copy the context
(asyncio.to_thread, the executors of both frameworks). For other threads, and for calls after the block, use `bind`.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from decimal import ROUND_CEILING, Decimal
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Never, ParamSpec, Self, TypeAlias, TypeVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.formatting import markdown_table, shorten_model_name, suggest
from embedkit_core.common.money import format_usd
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import USAGE_FIELDS, Usage
from embedkit_core.common.validation import check_integer, check_name, check_unknown, parse_usd
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter

P = ParamSpec("P")
T = TypeVar("T")

ExitMethod: TypeAlias = Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]

_active: ContextVar[tuple[_Block, ...]] = ContextVar("embedkit_trackers", default=())


def active_trackers() -> tuple[UsageTracker, ...]:
    """Return the trackers of the blocks around the caller."""
    blocks = _active.get()
    if not blocks:
        return ()
    running = [block for block in blocks if block._is_running]
    if len(running) < len(blocks):
        _active.set(tuple(running))
    return tuple({block._counter: None for block in running})


class _Exit:
    """The method `__exit__` of a block, in C: a signal can interrupt a Python function before its first statement."""

    def __get__(self, block: _Block | None, owner: type[_Block]) -> ExitMethod:
        return _Block._end if block is None else block._lock.__exit__  # type: ignore[return-value]


class _Block:
    """A `with` block that counts for a tracker. Ctrl-C at its edges cannot leave it running.

    It runs from the last statement of `__enter__`, an assignment, until `__exit__` releases its lock. No signal is
    handled between these and the block. A block that has ended is removed from the context later: blocks in generators
    end in any order, and in other contexts than they began in.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._began = False

    @property
    def _counter(self) -> UsageTracker:
        """The tracker that counts the block."""
        raise NotImplementedError

    @property
    def _is_running(self) -> bool:
        """True if the caller is in the block."""
        return self._began and self._lock.locked()

    def __enter__(self) -> Self:
        if self._is_running:
            raise ConfigurationError("This usage tracker is already in use. Create another one with track_usage().")
        self._began = False
        self._lock.acquire(blocking=False)
        _active.set((*(block for block in _active.get() if block._is_running), self))
        self._began = True
        return self

    __exit__ = _Exit()

    def _end(self, *_: object) -> None:
        """End the block, for a caller that uses the methods of the class, such as contextlib.ExitStack."""
        self._lock.release()


class UsageRow(NamedTuple):
    """Usage of one model for one input type."""

    model: str
    input_type: InputType
    usage: Usage


class UsageTracker(_Block):
    """Usage of a block of code, updated while it runs. Requests that outlive the block are counted too.

    It has the attributes of `Usage`, summed over all models.

    Attributes:
        budget: The budget of the block. None for no limit.

    Example:
        ```python
        with track_usage() as usage:
            embedder.embed_documents(texts)
        print(usage.tokens, usage.cost_usd)
        ```
    """

    if TYPE_CHECKING:
        texts: int
        cache_hits: int
        duplicates: int
        coalesced: int
        sent: int
        failed: int
        empty: int
        requests: int
        retries: int
        tokens: int
        unpriced_tokens: int
        priced_usd: Decimal
        cost_usd: Decimal | None
        saved_tokens: int
        saved_usd: Decimal | None
        possibly_billed_tokens: int
        possibly_billed_usd: Decimal | None

    def __init__(self, budget: Budget | None = None) -> None:
        super().__init__()
        self.budget = budget
        self._meters: dict[tuple[str, InputType, Decimal | None], Meter] = {}

    @property
    def _counter(self) -> UsageTracker:
        """The tracker itself."""
        return self

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function, sync or async, with this tracker active wherever it runs, for example in a thread."""

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            with _BoundCall(self):
                result = function(*args, **kwargs)
            return self._counted(result) if inspect.iscoroutine(result) else result

        @functools.wraps(function)
        async def bound_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await bound(*args, **kwargs)

        return bound_async if inspect.iscoroutinefunction(function) else bound  # type: ignore[return-value]

    async def _counted(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        with _BoundCall(self):
            return await coroutine

    def meter(self, model: str, input_type: InputType, price: Decimal | None) -> Meter:
        """Return the meter of a model, input type and price, for the engine."""
        meter = self._meters.get((model, input_type, price))
        return meter or self._meters.setdefault((model, input_type, price), Meter(price))  # atomic across threads

    @property
    def usage(self) -> Usage:
        """Total usage so far."""
        return sum((row.usage for row in self.rows), Usage())

    @property
    def rows(self) -> list[UsageRow]:
        """Usage by model and input type, in order of first use."""
        found: dict[tuple[str, InputType], Usage] = {}
        for (model, input_type, _), meter in list(self._meters.items()):
            found[model, input_type] = found.get((model, input_type), Usage()) + meter.read()
        return [UsageRow(*name, usage) for name, usage in found.items()]

    def __getattr__(self, name: str) -> Any:
        if name in USAGE_FIELDS or name == "cost_usd":
            return getattr(self.usage, name)
        hint = suggest(name, [*USAGE_FIELDS, "cost_usd"]) or f"Usage has {', '.join(USAGE_FIELDS)}"
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; {hint}")

    def to_dict(self) -> dict[str, Any]:
        """Return the total and the rows for JSON: USD as strings, None if unknown."""
        return {"total": self.usage.to_dict(), "models": [_row_to_dict(row) for row in self.rows]}

    def to_json_lines(self) -> str:
        """Return a line of JSON for each model and input type."""
        return "".join(json.dumps(_row_to_dict(row)) + "\n" for row in self.rows)

    def table(self) -> str:
        """Return a Markdown table of the rows, with a total."""
        return usage_table([*self.rows, *([UsageRow("total", "", self.usage)] if len(self.rows) != 1 else [])])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return str(self.usage)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.usage}>"


class _BoundCall(_Block):
    """A call of a function that is bound to a tracker."""

    def __init__(self, tracker: UsageTracker) -> None:
        super().__init__()
        self._tracker = tracker

    @property
    def _counter(self) -> UsageTracker:
        """The tracker that the function is bound to."""
        return self._tracker


def _row_to_dict(row: UsageRow) -> dict[str, Any]:
    return {"model": row.model, "input_type": row.input_type, **row.usage.to_dict()}


def usage_by_model(rows: Iterable[UsageRow]) -> dict[str, Usage]:
    """Return the usage of each model, summed over its input types."""
    found: dict[str, Usage] = {}
    for row in rows:
        found[row.model] = found.get(row.model, Usage()) + row.usage
    return found


class UsageAccumulator:
    """Sum of the usage of calls that are reported as dictionaries. Thread-safe."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._usages: dict[tuple[str, InputType], Usage] = {}

    @property
    def rows(self) -> list[UsageRow]:
        """Usage by model and input type."""
        return [UsageRow(*name, usage) for name, usage in list(self._usages.items())]

    @property
    def usage(self) -> Usage:
        """Total usage so far."""
        return sum((row.usage for row in self.rows), Usage())

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the usage of a call: "model", "input_type" and the values of `Usage.to_dict()`."""
        name, usage = (row["model"], row["input_type"]), Usage.from_dict(row)
        with self._lock.lock:
            self._usages[name] = self._usages.get(name, Usage()) + usage


_COLUMNS: Mapping[str, Callable[[Usage], str]] = {
    "texts": lambda usage: f"{usage.texts:,}",
    "from cache": lambda usage: f"{usage.cache_hits:,}",
    "sent": lambda usage: f"{usage.sent:,}",
    "failed": lambda usage: f"{usage.failed:,}",
    "requests": lambda usage: f"{usage.requests:,}",
    "tokens": lambda usage: f"{usage.tokens:,}",
    "cost": lambda usage: format_usd(usage.cost_usd),
    "saved (est.)": lambda usage: format_usd(usage.saved_usd),
    "possibly billed": lambda usage: format_usd(usage.possibly_billed_usd, ROUND_CEILING),
}
_DEFAULT_COLUMNS = ("texts", "sent", "tokens", "cost")


def usage_table(rows: list[UsageRow]) -> str:
    """Return a Markdown table of usage; columns with only zeros are omitted, except for the main ones."""
    total = sum((row.usage for row in rows), Usage())
    columns = {
        name: show for name, show in _COLUMNS.items() if name in _DEFAULT_COLUMNS or show(total) not in ("0", "$0")
    }
    head = ["model", "input", *columns]
    cells = [
        [shorten_model_name(row.model, 30), row.input_type, *(show(row.usage) for show in columns.values())]
        for row in rows
    ]
    return markdown_table(head, cells, right=range(2, len(head)))


def track_usage(
    *,
    budget_usd: float | str | Decimal | None = None,
    budget_tokens: int | None = None,
    budget_name: str | None = None,
    **unknown: Never,
) -> UsageTracker:
    """Return a tracker of the usage of a block, in sync or async code, with an optional budget.

    Args:
        budget_usd: Limit in USD for the block.
        budget_tokens: Limit in tokens for the block.
        budget_name: The name of a budget that several processes share, through the coordinator of the embedders used.

    Raises:
        ConfigurationError: A budget is not a valid number, a name has no budget, or there is no argument of that name.

    Example:
        ```python
        with track_usage(budget_usd=0.5) as usage:
            embedder.embed_documents(texts)
        print(usage)
        ```
    """
    check_unknown("track_usage", unknown, ("budget_usd", "budget_tokens", "budget_name"))
    return UsageTracker(make_budget(budget_usd, budget_tokens, budget_name))


def make_budget(budget_usd: object, budget_tokens: object, budget_name: object = None) -> Budget | None:
    """Return the budget for the arguments. None if all are None.

    Raises:
        ConfigurationError: A budget is not a valid number, or a name is not valid or has no budget.
    """
    usd = None if budget_usd is None else parse_usd("budget_usd", budget_usd)
    if budget_tokens is not None:
        check_integer("budget_tokens", budget_tokens, 0)
    if budget_name is not None:
        check_name("budget_name", budget_name)
    if usd is None and budget_tokens is None:
        if budget_name is not None:
            raise ConfigurationError(
                f"budget_name: has no budget (got {budget_name!r}). Set budget_usd= or budget_tokens=, the same in all "
                "processes."
            )
        return None
    return Budget(usd, budget_tokens, budget_name)  # type: ignore[arg-type]
