"""Commands `budget list` and `budget reset`: named budgets of the processes that share a cache folder."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from embedkit_core.cli import options as o
from embedkit_core.cli.caches import opened
from embedkit_core.cli.console import budget_app, confirm, err, show
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun, format_usd, suggest
from embedkit_core.coordination.local.coordinator import LocalCoordinator
from embedkit_core.coordination.opening import LOCAL_FOLDER, coordinator_of_folder
from embedkit_core.costs.amounts import Amount, BudgetLimit, BudgetStatus, to_usd
from embedkit_core.tools.tables import table

ConfirmReset = Annotated[bool, typer.Option("--yes", "-y", help="Reset the budget without asking for confirmation.")]


@budget_app.command(name="list")
def list_command(cache: o.CacheOption = None, as_json: o.Json = False) -> None:
    """List the named budgets of a cache folder: their limits, and what all processes have spent and reserved."""
    folder = _folder(cache)
    budgets = _budgets(folder)
    head = ["name", "limit", "spent", "possibly billed", "reserved", "left"]
    cells = [[budget.name, _limit(budget), *_amounts(budget)] for budget in budgets]
    text = table(head, cells) if budgets else f"{folder}: no budgets"
    show(text, [_to_dict(budget) for budget in budgets], as_json=as_json)


@budget_app.command()
def reset(
    name: Annotated[str, typer.Argument(help="The budget, as `budget list` shows it.")],
    cache: o.CacheOption = None,
    yes: ConfirmReset = False,
) -> None:
    """Set what a budget has spent to 0; processes that run can spend it again. Reservations in flight stay.

    The next process that uses the budget sets its limit.
    """
    folder = _folder(cache)
    budgets = {budget.name: budget for budget in _budgets(folder)}
    if name not in budgets:
        hint = suggest(name, list(budgets)) or f"its budgets: {', '.join(budgets) or 'none'}"
        raise ConfigurationError(f"NAME: {folder} has no budget {name!r}; {hint}")
    budget = budgets[name]
    used = _amount(budget, budget.spent.plus(budget.lost))
    confirm(f"reset the budget {name!r}, of which {used} of {_limit(budget)} are spent?", yes=yes)
    _coordinator(folder).reset_budget(name)
    err.print(f"budget {name!r} reset; {used} of {_limit(budget)} were spent")


def _folder(path: str | None) -> Path:
    """Return the cache folder at `path`, which must exist, or the user's own, which may not exist yet."""
    folder = opened(path, "--cache").folder
    if path is not None and not folder.is_dir():
        raise ConfigurationError(f"--cache: the folder does not exist (got {path!r}). Use the folder of a cache.")
    return folder


def _coordinator(folder: Path) -> LocalCoordinator:
    coordinator = coordinator_of_folder(folder).open()
    assert isinstance(coordinator, LocalCoordinator)
    return coordinator


def _budgets(folder: Path) -> list[BudgetStatus]:
    """Return the budgets of a cache folder. Nothing is created if there are none."""
    if not (folder / LOCAL_FOLDER).exists():
        return []
    return sorted(_coordinator(folder).budgets())


def _amounts(budget: BudgetStatus) -> list[str]:
    """Return what is spent, possibly billed, reserved and left."""
    amounts = [_amount(budget, amount) for amount in (budget.spent, budget.lost, budget.held)]
    left = _left(budget)
    return [*amounts, "none" if left is None else _amount(budget, left)]


def _left(budget: BudgetStatus) -> Amount | None:
    """Return what a budget has left; 0 where it has no limit, None if it has none at all."""
    if budget.limit == BudgetLimit():
        return None
    limit = Amount(budget.limit.nano_usd or 0, budget.limit.tokens or 0)
    return limit.minus(budget.spent).minus(budget.lost).minus(budget.held)


def _limit(budget: BudgetStatus) -> str:
    limit = budget.limit
    return "none" if limit == BudgetLimit() else _amount(budget, Amount(limit.nano_usd or 0, limit.tokens or 0))


def _amount(budget: BudgetStatus, amount: Amount) -> str:
    """Return an amount in the units that the budget limits, in both if it has no limit."""
    limit, has_none = budget.limit, budget.limit == BudgetLimit()
    parts = [f"${format_usd(to_usd(amount.nano_usd))}"] if limit.nano_usd is not None or has_none else []
    parts += [count_noun(amount.tokens, "token")] if limit.tokens is not None or has_none else []
    return ", ".join(parts)


def _to_dict(budget: BudgetStatus) -> dict[str, Any]:
    """Return a budget for JSON: USD as strings, None where there is no limit."""
    limit, left = budget.limit, _left(budget) or Amount()
    amounts = {"spent": budget.spent, "possibly_billed": budget.lost, "reserved": budget.held}
    usd: dict[str, Decimal | None] = {"limit_usd": None if limit.nano_usd is None else to_usd(limit.nano_usd)}
    usd |= {f"{name}_usd": to_usd(amount.nano_usd) for name, amount in amounts.items()}
    usd["left_usd"] = None if limit.nano_usd is None else to_usd(left.nano_usd)
    return {
        "name": budget.name,
        **{name: None if value is None else format_usd(value) for name, value in usd.items()},
        "limit_tokens": limit.tokens,
        **{f"{name}_tokens": amount.tokens for name, amount in amounts.items()},
        "left_tokens": None if limit.tokens is None else left.tokens,
    }
