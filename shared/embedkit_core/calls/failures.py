"""What is said of a call: what it would do, the error where it failed, the warning where texts were cut."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from embedkit_core.common.errors import BudgetError, EmbedKitError, PartialFailureError
from embedkit_core.common.formatting import format_positions, format_usd
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.costs.tokens import cost_usd

logger = logging.getLogger("embedkit_core")


def call_error(result: EmbeddingResult, needed: int, *, kept: bool) -> EmbedKitError:
    """Give the error for a result in which texts failed, which may still need so many tokens.

    `kept` says whether the others are in a cache.
    """
    failed = {p: e for p, e in result.failed.items() if isinstance(e, EmbedKitError)}
    n = len(result.vectors)
    first = next(iter(failed.values()))
    succeeded = [p for p in range(n) if p not in failed]
    for error in failed.values():
        if isinstance(error, BudgetError):
            return _budget_error(result, error, needed, succeeded, kept=kept)
    if not succeeded:
        first.usage = result.usage
        return first
    rerun = " and in the cache: a rerun sends only what failed" if kept else ""
    failure = PartialFailureError(
        f"{len(failed)} of {n} texts failed (positions {format_positions(failed)}): {str(first).rstrip('.')}. "
        f"{len(succeeded)} succeeded and are in .result{rerun}",
        failed=failed,
        succeeded=succeeded,
        result=result,
    )
    failure.usage = result.usage
    return failure


def error_name(failed: Mapping[int, EmbedKitError], n: int) -> str | None:
    """Name the error that a call of n distinct texts ends with where some failed, None where none did."""
    errors = list(failed.values())
    if not errors:
        return None
    if any(isinstance(error, BudgetError) for error in errors):
        return BudgetError.__name__
    return type(errors[0]).__name__ if len(errors) == n else PartialFailureError.__name__


def unknown_price_error(model: str) -> BudgetError:
    """Give the error for a budget in dollars and a price that nobody knows."""
    return BudgetError(
        f"the price of {model} is not known, so budget_usd= cannot be kept: give it in USD per million tokens, as in "
        f"prices={{{model!r}: 0.02}}, or use budget_tokens=; nothing was sent"
    )


def _budget_error(
    result: EmbeddingResult, first: BudgetError, needed: int, succeeded: list[int], *, kept: bool
) -> BudgetError:
    """Give the error for a call that a budget has stopped: what is done, what is left, and what that needs at most."""
    usd = None if first.usd_per_million is None else cost_usd(needed, first.usd_per_million)
    rest = f"{len(result.failed):,} of {len(result.vectors):,} texts were not sent or failed"
    most = "" if usd is None else f" (${format_usd(usd)})"
    rerun = " What is done is in the cache: a rerun sends only the rest." if kept and succeeded else ""
    failure = BudgetError(
        f"{str(first).rstrip('.')}. {rest}, and need up to {needed:,} tokens{most}; {len(succeeded):,} are done and in "
        f".result.{rerun}",
        limit_usd=first.limit_usd,
        spent_usd=first.spent_usd,
        needed_usd=usd,
        limit_tokens=first.limit_tokens,
        spent_tokens=first.spent_tokens,
        needed_tokens=needed,
        usd_per_million=first.usd_per_million,
        failed={p: e for p, e in result.failed.items() if isinstance(e, EmbedKitError)},
        succeeded=succeeded,
        result=result,
    )
    failure.usage = result.usage
    return failure
