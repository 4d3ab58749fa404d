"""Commands `budget list` and `budget reset`: named budgets of the processes that share a cache folder or a Redis."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any, NamedTuple, Protocol

import typer

from embedkit_core.cache.opening import CACHE_VARIABLE, environment_cache
from embedkit_core.cache.urls import scheme_of
from embedkit_core.cli import options as o
from embedkit_core.cli.caches import opened
from embedkit_core.cli.console import budget_app, confirm, err, show, table_width
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun, suggest
from embedkit_core.common.money import exact_decimal, format_usd
from embedkit_core.config.coordination import REDIS_SCHEMES, redis_connection
from embedkit_core.coordination.opening import (
    LOCAL_FOLDER,
    CoordinatorHandle,
    coordinator_of_folder,
    coordinator_of_redis,
)
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus, to_usd
from embedkit_core.tools.tables import table

ConfirmReset = Annotated[bool, typer.Option("--yes", "-y", help="Reset the budget without asking for confirmation.")]


@budget_app.command(name="list")
def list_command(
    cache: o.CacheOption = None,
    coordination: o.CoordinationOption = None,
    wide: o.Wide = False,
    as_json: o.Json = False,
) -> None:
    """List the named budgets of a cache folder or a Redis: limits, and what all processes have spent and reserved."""
    store = _open(cache, coordination)
    budgets = store.budgets()
    head = ["name", "limit", "spent", "possibly billed", "reserved", "left"]
    cells = [
        [
            budget.name,
            _limit(budget),
            _amount(budget, budget.spent),
            *(_amount(budget, amount, ROUND_CEILING) for amount in (budget.lost, budget.held)),
            _amount(budget, budget.left, ROUND_FLOOR) if budget.has_limit else "none",
        ]
        for budget in budgets
    ]
    text = table(head, cells, table_width(wide=wide)) if budgets else f"{store.name}: no budgets"
    show(text, [_to_dict(budget) for budget in budgets], as_json=as_json)


@budget_app.command()
def reset(
    name: Annotated[str, typer.Argument(help="The budget, as `budget list` shows it.")],
    cache: o.CacheOption = None,
    coordination: o.CoordinationOption = None,
    yes: ConfirmReset = False,
) -> None:
    """Set what a budget has spent to 0; processes that run can spend it again. Reservations in flight stay.

    The next process that uses the budget sets its limit.
    """
    store = _open(cache, coordination)
    budgets = {budget.name: budget for budget in store.budgets()}
    if name not in budgets:
        hint = suggest(name, list(budgets)) or f"its budgets: {', '.join(budgets) or 'none'}"
        raise ConfigurationError(f"NAME: {store.name} has no budget {name!r}; {hint}")
    budget = budgets[name]
    used, limit = _amount(budget, budget.used), _limit(budget)
    confirm(f"reset the budget {name!r}, of which {used} of {limit} are spent?", yes=yes)
    store.coordinator.reset_budget(name)
    err.print(f"budget {name!r} reset; {used} of {limit} were spent")


class Budgets(Protocol):
    """A coordinator whose budgets can be listed and reset."""

    def budgets(self) -> list[BudgetStatus]:
        """Return all budgets."""
        ...

    def reset_budget(self, name: str) -> object:
        """Set what was spent of a budget to 0."""
        ...


class BudgetStore(NamedTuple):
    """Where budgets are.

    Attributes:
        name: The folder or the address, for messages.
        coordinator: The coordinator that has them. It is opened on its first use.
        is_empty: True if there are none, so that the coordinator must not create anything.
    """

    name: str
    coordinator: Budgets
    is_empty: bool = False

    def budgets(self) -> list[BudgetStatus]:
        """Return the budgets by name."""
        return [] if self.is_empty else sorted(self.coordinator.budgets())


def _open(cache: str | None, coordination: str | None) -> BudgetStore:
    """Return the budgets in the Redis or the cache folder of the options.

    Raises:
        ConfigurationError: An address is not valid, or the folder does not exist; the user's own may not exist yet.
    """
    default = environment_cache() if cache is None else None
    for option, address in (("--coordination", coordination), ("--cache", cache), (CACHE_VARIABLE, default)):
        if scheme_of(address) in REDIS_SCHEMES:
            handle = coordinator_of_redis(redis_connection(address, option))
            return BudgetStore(str(handle), _budgets_of(handle))
    folder = opened(cache, "--cache").folder
    if cache is not None and not folder.is_dir():
        raise ConfigurationError(f"--cache: the folder does not exist (got {cache!r}). Use the folder of a cache.")
    coordinator = _budgets_of(coordinator_of_folder(folder))
    return BudgetStore(str(folder), coordinator, not (folder / LOCAL_FOLDER).exists())


def _budgets_of(handle: CoordinatorHandle) -> Budgets:
    coordinator: Any = handle.open()  # both built-in ones have budgets
    budgets: Budgets = coordinator
    return budgets


def _amount(budget: BudgetStatus, amount: Amount | BudgetLimit, rounding: str = ROUND_HALF_EVEN) -> str:
    """Return an amount in the units that the budget limits, in both if it has no limit."""
    parts = []
    if budget.limit.nano_usd is not None or not budget.has_limit:
        parts.append(format_usd(to_usd(amount.nano_usd or 0), rounding))
    if budget.limit.tokens is not None or not budget.has_limit:
        parts.append(count_noun(amount.tokens or 0, "token"))
    return " and ".join(parts)


def _limit(budget: BudgetStatus) -> str:
    return str(budget.limit) if budget.has_limit else "none"


def _to_dict(budget: BudgetStatus) -> dict[str, Any]:
    """Return a budget for JSON: USD as strings, None where there is no limit."""
    limit, left = budget.limit, budget.left
    amounts = {"spent": budget.spent, "possibly_billed": budget.lost, "reserved": budget.held}
    usd: dict[str, Decimal | None] = {"limit_usd": None if limit.nano_usd is None else to_usd(limit.nano_usd)}
    usd |= {f"{name}_usd": to_usd(amount.nano_usd) for name, amount in amounts.items()}
    usd["left_usd"] = None if left.nano_usd is None else to_usd(left.nano_usd)
    return {
        "name": budget.name,
        **{name: None if value is None else exact_decimal(value) for name, value in usd.items()},
        "limit_tokens": limit.tokens,
        **{f"{name}_tokens": amount.tokens for name, amount in amounts.items()},
        "left_tokens": left.tokens,
    }
