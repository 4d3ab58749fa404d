"""What a call that did not go all well comes to: the error that is raised, and the warning that is said."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from embedkit_core.errors import EmbedKitError, PartialFailureError
from embedkit_core.types import EmbeddingResult

logger = logging.getLogger("embedkit_core")


def failure_of(result: EmbeddingResult, *, kept: bool) -> EmbedKitError:
    """Give the error for a result in which texts failed; `kept` says whether the others are in a cache."""
    failed = {p: e for p, e in result.failed.items() if isinstance(e, EmbedKitError)}
    n = len(result.vectors)
    first = next(iter(failed.values()))
    succeeded = [p for p in range(n) if p not in failed]
    if not succeeded:
        first.usage = result.usage
        return first
    rerun = " and in the cache: a rerun sends only what failed" if kept else ""
    failure = PartialFailureError(
        f"{len(failed)} of {n} texts failed (positions {first_positions(failed)}): {str(first).rstrip('.')}. "
        f"{len(succeeded)} succeeded and are in .result{rerun}",
        failed=failed,
        succeeded=succeeded,
        result=result,
    )
    failure.usage = result.usage
    return failure


def warn_of_cuts(model: str, truncated: Collection[int], n_texts: int) -> None:
    """Say that texts were cut to fit the model."""
    logger.warning(
        "%d of %d texts are longer than %s takes and were cut (positions %s): embed(...).truncated names them "
        "each time, on_long_text='mean' or 'error' are the alternatives; said once",
        len(truncated),
        n_texts,
        model,
        first_positions(truncated),
    )


def first_positions(positions: Iterable[int]) -> str:
    """Name ten positions at most, for a message."""
    named = list(map(str, positions))
    return ", ".join(named[:10]) + (", …" if len(named) > 10 else "")
