"""The result of a comparison in a few sentences. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from embedkit_core.common.formatting import count_noun, shorten_model_name
from embedkit_core.common.money import format_usd
from embedkit_core.tools.ranking import Score

SIGNIFICANT = 0.05  # p-value
MAX_TIES = 3  # that are named


class Scored(Protocol):
    """The values of a candidate of a comparison that a verdict needs."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def dimensions(self) -> int | None: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def scores(self) -> Mapping[str, Score]: ...  # noqa: D102
    @property
    def bytes_per_vector(self) -> int: ...  # noqa: D102
    @property
    def p_value(self) -> float | None: ...  # noqa: D102
    @property
    def error(self) -> str | None: ...  # noqa: D102
    @property
    def corpus_usd(self) -> Decimal | None: ...  # noqa: D102


def comparison_verdict(candidates: Sequence[Scored], measure: str, queries: int) -> str:
    """Return which candidate is best, which is the cheapest within its confidence interval, and what is a tie.

    Args:
        candidates: The candidates, the best first.
        measure: Name of the main measure.
        queries: Number of queries.
    """
    valid = [candidate for candidate in candidates if candidate.error is None]
    if not valid:
        return "No model could be evaluated; the reasons are below."
    best = valid[0]
    score = best.scores[measure]
    parts = [f"Best: {variant_name(best)}, {measure} {score}."]
    if len(valid) > 1:
        within = [candidate for candidate in valid if candidate.scores[measure].mean >= score.low]
        cheapest = min(within, key=_cost)
        what = f"{_price(cheapest)}, {cheapest.bytes_per_vector:,} bytes per vector"
        if cheapest is best:
            parts.append(f"It is also the cheapest within its confidence interval ({what}).")
        else:
            mean = f"{cheapest.scores[measure].mean:.4f}"
            parts.append(f"Cheapest within its confidence interval: {variant_name(cheapest)}, {mean} ({what}).")
        ties = [variant_name(c) for c in valid[1:] if c.p_value is not None and c.p_value > SIGNIFICANT]
        if ties:
            named = ", ".join(ties[:MAX_TIES]) + (f" and {len(ties) - MAX_TIES} more" if len(ties) > MAX_TIES else "")
            count = count_noun(queries, "query", "queries")
            parts.append(f"A tie with the best, as {count} show no significant difference: {named}.")
        else:
            parts.append("The difference to each of the others is significant.")
    return " ".join(parts)


def variant_name(candidate: Scored) -> str:
    """Return the name of a candidate in a sentence: model, dimensions and dtype."""
    return f"{shorten_model_name(candidate.model, 40)} ({candidate.dimensions or '?'}, {candidate.dtype})"


def _cost(candidate: Scored) -> tuple[bool, Decimal, int]:
    usd = candidate.corpus_usd
    return usd is None, usd or Decimal(0), candidate.bytes_per_vector


def _price(candidate: Scored) -> str:
    usd = candidate.corpus_usd
    if usd is None:
        return "price unknown"
    return f"{format_usd(usd)} for these documents" if usd else "free"
