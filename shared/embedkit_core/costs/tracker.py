"""What a block of code asks and pays for: `with track_usage() as usage:`.

A tracker is found through the context of whoever calls, so that it counts what the block does in tasks and in threads
that take their context along (asyncio.to_thread, both frameworks' executors). A bare thread has none: `bind`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Self, TypeVar

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.formatting import format_usd, markdown_table, shorten_model_name, suggest
from embedkit_core.common.types import InputType
from embedkit_core.common.usage import USAGE_FIELDS, Usage
from embedkit_core.common.validation import check_integer, parse_usd
from embedkit_core.costs.budget import Budget
from embedkit_core.costs.meter import Meter

P = ParamSpec("P")
T = TypeVar("T")

_active: ContextVar[tuple[UsageTracker, ...]] = ContextVar("embedkit_trackers", default=())


def active_trackers() -> tuple[UsageTracker, ...]:
    """Give those of the blocks that the caller is in."""
    return _active.get()


class UsageRow(NamedTuple):
    """The usage of one model in one role."""

    model: str
    input_type: InputType
    usage: Usage


class UsageTracker:
    """The usage of a block, live while it runs; it has the names of `Usage`, of all its models together.

    Requests that were begun in the block and are answered after it are still counted: they are paid for.
    """

    if TYPE_CHECKING:
        texts: int
        cache_hits: int
        duplicates: int
        joined: int
        sent: int
        failed: int
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
        self.budget = budget
        self._meters: dict[tuple[str, InputType, Decimal | None], Meter] = {}
        self._entered = False

    def __enter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("this tracker is in use; begin another with track_usage()")
        self._entered = True
        _active.set((*_active.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        # Itself alone: blocks in generators end in any order, and in other contexts than they began in.
        _active.set(tuple(tracker for tracker in _active.get() if tracker is not self))
        self._entered = False

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """Give a function that counts here wherever it runs, an async one too: in a bare thread, in an executor."""

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            with self._counting():
                result = function(*args, **kwargs)
            return self._counted(result) if inspect.iscoroutine(result) else result

        @functools.wraps(function)
        async def bound_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            return await bound(*args, **kwargs)

        return bound_async if inspect.iscoroutinefunction(function) else bound  # type: ignore[return-value]

    async def _counted(self, running: Coroutine[Any, Any, Any]) -> Any:
        with self._counting():
            return await running

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """Count here what is done meanwhile, besides where it is counted anyway."""
        outer = _active.get()
        token = _active.set(outer if self in outer else (*outer, self))
        try:
            yield
        finally:
            _active.reset(token)

    def meter(self, model: str, input_type: InputType, price: Decimal | None) -> Meter:
        """Give what counts one model in one role, for the engine."""
        meter = self._meters.get((model, input_type, price))
        return meter or self._meters.setdefault((model, input_type, price), Meter(price))  # atomic, for other threads

    @property
    def usage(self) -> Usage:
        """All of it so far."""
        return sum((row.usage for row in self.rows), Usage())

    @property
    def rows(self) -> list[UsageRow]:
        """By model and role, in the order in which they were first used."""
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
        """Give all of it and its rows, as JSON has them; dollars are strings, None where unknown."""
        return {"total": self.usage.to_dict(), "models": [_listed(row) for row in self.rows]}

    def to_json_lines(self) -> str:
        """Give a line of JSON for each model and role."""
        return "".join(json.dumps(_listed(row)) + "\n" for row in self.rows)

    def table(self) -> str:
        """Give a table of all of it for people, in Markdown."""
        return usage_table([*self.rows, *([UsageRow("total", "", self.usage)] if len(self.rows) != 1 else [])])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return str(self.usage)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.usage}>"


def _listed(row: UsageRow) -> dict[str, Any]:
    return {"model": row.model, "input_type": row.input_type, **row.usage.to_dict()}


def usage_by_model(rows: Iterable[UsageRow]) -> dict[str, Usage]:
    """Give the usage of each model, in all roles together."""
    found: dict[str, Usage] = {}
    for row in rows:
        found[row.model] = found.get(row.model, Usage()) + row.usage
    return found


class UsageAccumulator:
    """The usage of calls as it was told of in dictionaries, each that of a `UsageRow`; safe to add to in any thread."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._heard: dict[tuple[str, InputType], Usage] = {}

    @property
    def rows(self) -> list[UsageRow]:
        """By model and role."""
        return [UsageRow(*name, usage) for name, usage in list(self._heard.items())]

    @property
    def usage(self) -> Usage:
        """All of it so far."""
        return sum((row.usage for row in self.rows), Usage())

    def add(self, told: Mapping[str, Any]) -> None:
        """Take in the usage of a call."""
        name, usage = (told["model"], told["input_type"]), Usage.from_dict(told)
        with self._lock.lock:
            self._heard[name] = self._heard.get(name, Usage()) + usage


COLUMNS: Mapping[str, Callable[[Usage], str]] = {
    "texts": lambda usage: f"{usage.texts:,}",
    "from cache": lambda usage: f"{usage.cache_hits:,}",
    "sent": lambda usage: f"{usage.sent:,}",
    "failed": lambda usage: f"{usage.failed:,}",
    "requests": lambda usage: f"{usage.requests:,}",
    "tokens": lambda usage: f"{usage.tokens:,}",
    "cost": lambda usage: format_cost(usage.cost_usd),
    "saved, about": lambda usage: format_cost(usage.saved_usd),
    "possibly billed": lambda usage: format_cost(usage.possibly_billed_usd),
}


DEFAULT_COLUMNS = ("texts", "sent", "tokens", "cost")


def usage_table(rows: list[UsageRow]) -> str:
    """Give rows of usage as a table in Markdown; columns of nothing but zeros are left out, but for the main ones."""
    total = sum((row.usage for row in rows), Usage())
    columns = {
        name: show for name, show in COLUMNS.items() if name in DEFAULT_COLUMNS or show(total) not in ("0", "$0")
    }
    head = ["model", "role", *columns]
    cells = [
        [shorten_model_name(row.model, 30), row.input_type, *(show(row.usage) for show in columns.values())]
        for row in rows
    ]
    return markdown_table(head, cells, right=range(2, len(head)))


def format_cost(usd: Decimal | None) -> str:
    """Give dollars for people: "unknown" where nobody knows."""
    return "unknown" if usd is None else f"${format_usd(usd)}"


def track_usage(*, budget_usd: float | str | Decimal | None = None, budget_tokens: int | None = None) -> UsageTracker:
    """Count what a block asks and pays for, and bound it; `with` it, in plain and in async code.

    Raises:
        ConfigurationError: a budget is no number that can be one.
    """
    return UsageTracker(make_budget(budget_usd, budget_tokens))


def make_budget(budget_usd: object, budget_tokens: object) -> Budget | None:
    """Give the budget that two arguments name, None where there is none.

    Raises:
        ConfigurationError: one of them is no number that can be one.
    """
    usd = None if budget_usd is None else parse_usd("budget_usd", budget_usd)
    if budget_tokens is not None:
        check_integer("budget_tokens", budget_tokens, 0)
    if usd is None and budget_tokens is None:
        return None
    return Budget(usd, budget_tokens)  # type: ignore[arg-type]
