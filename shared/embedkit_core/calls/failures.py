"""The error of a call in which texts failed."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

from embedkit_core.common.errors import (
    BadRequestError,
    BadTextError,
    BudgetError,
    EmbedKitError,
    PartialFailureError,
)
from embedkit_core.common.formatting import count_noun, format_positions
from embedkit_core.common.money import exact_decimal, format_usd
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.costs.tokens import cost_or_zero


def call_error(result: EmbeddingResult, needed: int, *, is_cached: bool) -> EmbedKitError:
    """Return the error of a call in which texts failed.

    Args:
        result: The result, with at least one failed text.
        needed: The most tokens that the failed texts may need.
        is_cached: Whether the vectors of the other texts are in a cache.
    """
    failed = {p: e for p, e in result.failed.items() if isinstance(e, EmbedKitError)}
    n = len(result.vectors)
    cause = next(iter(failed.values()))
    succeeded = [p for p in range(n) if p not in failed]
    for error in failed.values():
        if isinstance(error, BudgetError):
            return _budget_error(result, error, needed, succeeded, is_cached=is_cached)
    if len(succeeded) == len(result.empty):
        cause.usage = result.usage
        return cause
    rerun = " and in the cache; a rerun sends only the failed texts." if is_cached else "."
    failure = PartialFailureError(
        f"{len(failed)} of {n} texts failed ({format_positions(failed)}): {str(cause).rstrip('.')}. "
        f"{len(succeeded)} succeeded and {_is_or_are(succeeded)} in .result{rerun}",
        failed=failed,
        succeeded=succeeded,
        result=result,
    )
    failure.usage = result.usage
    return failure


def attribute_refusals(failed: Mapping[int, EmbedKitError], n: int) -> dict[int, EmbedKitError]:
    """Return the errors of a finished call's texts, with refusals attributed to the texts or to the request.

    A refused text is the cause if another text was accepted. If several were refused and none was accepted, the request
    is the cause. For a single text it is unknown.

    Args:
        failed: The errors of the texts.
        n: The number of texts that were sent.
    """
    refused = {index: error for index, error in failed.items() if isinstance(error, BadTextError)}
    if len(failed) < n or any(error.text_is_cause for error in refused.values()):
        for error in refused.values():
            error.text_is_cause = True
        return dict(failed)
    if len(refused) > 1 or any(type(error) is BadRequestError for error in failed.values()):
        return {**failed, **{index: error.for_request() for index, error in refused.items()}}
    return dict(failed)


def error_name(failed: Mapping[int, EmbedKitError], n: int) -> str | None:
    """Return the class name of the error of a call with `n` distinct texts, None if no text failed."""
    errors = list(failed.values())
    if not errors:
        return None
    if any(isinstance(error, BudgetError) for error in errors):
        return BudgetError.__name__
    return type(errors[0]).__name__ if len(errors) == n else PartialFailureError.__name__


def price_error(model: str, price: Decimal | None) -> BudgetError:
    """Return the error for a budget in USD and a model whose price is unknown, or is not from the provider."""
    flaw, example = "is unknown", "0.02"
    if price is not None:
        flaw = f"is only known from another source than the provider (${exact_decimal(price)} per million tokens)"
        example = exact_decimal(price)
    return BudgetError(
        f"budget_usd: the price of {model} {flaw}; nothing was sent. Set the provider's price in USD per million "
        f"tokens, as in prices={{{model!r}: {example}}}, or use budget_tokens=."
    )


def _is_or_are(texts: list[int]) -> str:
    return "is" if len(texts) == 1 else "are"


def _budget_error(
    result: EmbeddingResult, cause: BudgetError, needed: int, succeeded: list[int], *, is_cached: bool
) -> BudgetError:
    """Return the error of a call that a budget stopped."""
    usd = None if cause.usd_per_million is None else cost_or_zero(needed, cause.usd_per_million)
    rest = f"The rest ({len(result.failed):,} of {count_noun(len(result.vectors), 'text')}, not sent or failed)"
    price = "" if usd is None else f" ({format_usd(usd, ROUND_CEILING)})"
    rerun = " The cache holds their vectors; a rerun sends only the rest." if is_cached and succeeded else ""
    failure = BudgetError(
        f"{str(cause).rstrip('.')}. {rest} needs up to {count_noun(needed, 'token')}{price}; "
        f"{len(succeeded):,} succeeded and {_is_or_are(succeeded)} in .result.{rerun}",
        limit_usd=cause.limit_usd,
        spent_usd=cause.spent_usd,
        needed_usd=usd,
        limit_tokens=cause.limit_tokens,
        spent_tokens=cause.spent_tokens,
        needed_tokens=needed,
        usd_per_million=cause.usd_per_million,
        budget_name=cause.budget_name,
        failed={p: e for p, e in result.failed.items() if isinstance(e, EmbedKitError)},
        succeeded=succeeded,
        result=result,
    )
    failure.usage = result.usage
    return failure
