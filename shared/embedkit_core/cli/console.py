"""The app that commands register with, its exit codes, and helpers to print and to ask."""

from __future__ import annotations

import json
import sys
from decimal import Decimal
from typing import Any

import typer
from rich.console import Console

from embedkit_core.costs.tracker import format_cost

FAILED, USAGE, BUDGET, PARTIAL, REFUSED, INTERRUPTED = 1, 2, 3, 4, 5, 130

app = typer.Typer(
    name="rag-embedkit",
    help="Embeddings that you pay for once: embed files, know what it costs, compare, choose and benchmark models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
cache_app = typer.Typer(help="Look after the cache.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def show(text: str, data: Any, *, as_json: bool) -> None:
    """Print a result: for people, or for machines."""
    out.print(json.dumps(data, ensure_ascii=False) if as_json else text)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before money is spent; where nobody can be asked, --yes has to say so beforehand."""
    if yes:
        return
    if not sys.stdin.isatty():
        err.print(f"rag-embedkit: {question.rstrip('?')}: add --yes to go on without being asked")
        raise typer.Exit(REFUSED)
    if not typer.confirm(question, err=True):
        raise typer.Exit(REFUSED)


def about(usd: Decimal | None) -> str:
    """Give a price for a question: in dollars, or that nobody knows it."""
    return "a price nobody knows" if usd is None else f"about {format_cost(usd)}"
