"""The Typer app that commands register with, exit codes, and helpers for output and confirmation."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from functools import reduce
from typing import Annotated, Any

import typer
from rich.console import Console

from embedkit_core import __version__
from embedkit_core.calls.estimate import Estimate
from embedkit_core.cli.messages import Wording
from embedkit_core.common.errors import BudgetError
from embedkit_core.common.money import USD, exact_decimal, format_usd

FAILED, USAGE, BUDGET, PARTIAL, REFUSED, INTERRUPTED = 1, 2, 3, 4, 5, 130

app = typer.Typer(
    name="rag-embedkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
cache_app = typer.Typer(help="Inspect and maintain the cache.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
budget_app = typer.Typer(help="Show and reset the budgets that processes share.", no_args_is_help=True)
app.add_typer(budget_app, name="budget")
batch_app = typer.Typer(help="Embed texts at the provider's batch endpoint, at a lower price.", no_args_is_help=True)
app.add_typer(batch_app, name="batch")

# Control characters in names and texts could change the title, colors or contents of a terminal.
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class PlainConsole(Console):
    """A console that prints text as it is, with control characters as in JSON, such as "\\u001b"."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects as one line of text."""
        super().print(*(str(value).translate(_ESCAPES) for value in objects), **options)


out = PlainConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = PlainConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
wording = Wording()


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"rag-embedkit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Embed files with a cache, estimate costs, and compare, choose and benchmark embedding models."""


class StoppedError(Exception):
    """A command was interrupted, and a message says how to go on."""


class LogHandler(logging.Handler):
    """Prints warnings of the library like errors, one per line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        err.print(f"rag-embedkit: {wording(self.format(record))}")


def show(text: str, data: Any, *, as_json: bool) -> None:
    """Print a result as text or as JSON."""
    out.print(json.dumps(data, ensure_ascii=False) if as_json else text)


def table_width(*, wide: bool) -> int | None:
    """Return the width for tables: that of the terminal, None for no limit with --wide or without a terminal."""
    return out.width if out.is_terminal and not wide else None


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation and exit with REFUSED without it. Without a terminal, only `yes` confirms."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        err.print(f"rag-embedkit: confirmation required to {question.rstrip('?')}. Add --yes to proceed.")
        raise typer.Exit(REFUSED)
    try:
        confirmed = typer.confirm(question.translate(_ESCAPES), err=True)
    except typer.Abort:
        err.print()  # the next message is on a line of its own
        raise
    if not confirmed:
        raise typer.Exit(REFUSED)


def check_budget(estimates: Sequence[Estimate], limit: Decimal | None) -> None:
    """Check that a budget covers the estimated cost, before anything is sent.

    Raises:
        BudgetError: The estimate exceeds the budget.
    """
    expected = reduce(USD.add, (estimate.cost_usd or Decimal(0) for estimate in estimates), Decimal(0))
    most = reduce(USD.add, (estimate.max_cost_usd or Decimal(0) for estimate in estimates), Decimal(0))
    if limit is not None and expected > limit:
        raise BudgetError(
            f"--budget-usd: the estimated cost of about {format_usd(expected, ROUND_CEILING)} exceeds the budget of "
            f"${exact_decimal(limit)}. Nothing was sent. Set at least the estimate; "
            f"{format_usd(most, ROUND_CEILING)} is certain to be enough.",
            limit_usd=limit,
            needed_usd=most,
        )


def format_price(usd: Decimal | None) -> str:
    """Return an estimated price for a confirmation prompt."""
    return "an unknown price" if usd is None else f"about {format_usd(usd)}"
