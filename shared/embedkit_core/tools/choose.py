"""Choosing the cheapest model above a minimum quality, or the best model within a budget, for a whole index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from typing import Any

from embedkit_core.common.errors import ConfigurationError, EmbedKitError
from embedkit_core.common.formatting import count_noun, shorten_model_name
from embedkit_core.common.money import USD, exact_decimal, format_usd
from embedkit_core.common.validation import check_integer, parse_usd
from embedkit_core.costs.tokens import cost_of
from embedkit_core.embedder import Embedder
from embedkit_core.tools.compare import MAIN_MEASURE, Candidate, Comparison
from embedkit_core.tools.comparison_plan import InMemoryCache
from embedkit_core.tools.tables import table, to_csv, wrap


@dataclass(frozen=True, slots=True)
class Option:
    """One candidate with its costs.

    Attributes:
        candidate: The compared model.
        corpus_usd: Cost of the corpus; like the other costs, None if unknown.
        month_usd: Cost of the queries of one month.
        total_usd: Cost of the corpus and of all months.
        gigabytes: Size of the vectors in the index, None if the model failed.
        rejected: Why the candidate is not eligible, "" if it is.
    """

    candidate: Candidate
    corpus_usd: Decimal | None
    month_usd: Decimal | None
    total_usd: Decimal | None
    gigabytes: float | None
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Result of `choose`.

    Attributes:
        chosen: The chosen option, None if no candidate meets the criteria.
        options: All options, the cheapest first.
        criteria: The criteria in words.
    """

    chosen: Option | None
    options: tuple[Option, ...]
    criteria: str

    def table(self, *, width: int | None = None) -> str:
        """Return a Markdown table of all options, with the reason for each result.

        Args:
            width: Hide columns and wrap notes until lines have at most so many characters. None for no limit.
        """
        head = ["model", "dimensions", "dtype", MAIN_MEASURE, "corpus", "per month", "total", "index", "result"]
        rows = [_cells(option, option is self.chosen) for option in self.options]
        return wrap(f"{self.criteria}\n\n{table(head, rows, width)}", width)

    def to_dict(self) -> dict[str, Any]:
        """Return the criteria and all options as JSON-compatible values."""
        options = [{**_option_data(option), "chosen": option is self.chosen} for option in self.options]
        return {"criteria": self.criteria, "options": options}

    def to_csv(self) -> str:
        """Return all options as CSV, one line per option."""
        return to_csv(self.to_dict()["options"])

    def embedder(self, **settings: Any) -> Embedder:
        """Create the chosen embedder with the settings of the comparison, overridden by `settings`.

        Raises:
            ConfigurationError: No model was chosen.
        """
        if self.chosen is None:
            raise ConfigurationError(f"No model meets the criteria ({self.criteria}). table() shows the reasons.")
        return Embedder(**_embedder_arguments(self.chosen.candidate, settings))


def _embedder_arguments(candidate: Candidate, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a model was compared with, overridden by `settings`."""
    compared = {name: value for name, value in candidate.settings.items() if name != "on_error"}
    if isinstance(compared.get("cache"), InMemoryCache):
        compared["cache"] = False
    variant = {"model": candidate.model, "dimensions": candidate.dimensions, "dtype": candidate.dtype}
    return {**variant, **compared, **settings}


def choose(
    comparison: Comparison,
    *,
    floor: float | None = None,
    budget_usd: float | str | Decimal | None = None,
    corpus_texts: int | None = None,
    texts: Iterable[str] | None = None,
    queries_per_month: int = 0,
    months: int = 12,
    significant: bool = False,
    **settings: Any,
) -> Choice:
    """Choose the cheapest compared model with an nDCG@10 of at least `floor`, or the best one within a budget.

    Costs are estimated without billing data, so that the choice is the same in every run. Queries have the average
    length of the compared ones.

    Args:
        comparison: The result of `compare`.
        floor: Minimum nDCG@10.
        budget_usd: Maximum cost of the corpus and of all months.
        corpus_texts: Number of texts in the corpus, of the average length of the compared documents.
        texts: The texts of the corpus, instead of `corpus_texts`; cached texts cost nothing.
        queries_per_month: Number of queries per month.
        months: Number of months.
        significant: Treat a model that is not significantly worse than the best one (p > 0.05) as equally good.
        settings: Further arguments of `Embedder`, such as `cache`, for estimating `texts`.

    Raises:
        ConfigurationError: An argument is not valid, or neither `floor` nor `budget_usd` is set.
    """
    if not isinstance(comparison, Comparison):
        raise ConfigurationError(f"comparison: must be a result of compare() (got {type(comparison).__name__}).")
    corpus = None if texts is None else list(texts)
    size = corpus_texts if corpus is None else len(corpus)
    check_criteria(
        floor=floor, budget_usd=budget_usd, corpus_texts=size, queries_per_month=queries_per_month, months=months
    )
    size = size or len(comparison.task.documents)
    budget = None if budget_usd is None else parse_usd("budget_usd", budget_usd)
    priced = [_price(c, comparison, size, corpus, queries_per_month, months, settings) for c in comparison.candidates]
    best = comparison.best
    options = [_apply_criteria(option, best, floor, budget, significant=significant) for option in priced]
    eligible = [option for option in options if not option.rejected]
    if floor is not None:  # the cheapest first; if prices are equal, the better first
        eligible.sort(key=lambda o: (o.total_usd is None, o.total_usd or 0, -o.candidate.quality, o.gigabytes or 0))
    else:
        eligible.sort(key=lambda o: (-o.candidate.quality, o.total_usd or 0, o.gigabytes or 0))
    criteria = _criteria(floor, budget, size, queries_per_month, months)
    ordered = sorted(options, key=lambda o: (o.total_usd is None, o.total_usd or 0, -_quality(o)))
    return Choice(eligible[0] if eligible else None, tuple(ordered), criteria)


def check_criteria(
    *,
    floor: float | None,
    budget_usd: float | str | Decimal | None,
    corpus_texts: int | None,
    queries_per_month: int,
    months: int,
) -> None:
    """Check the criteria of `choose`, for a caller that compares models first.

    Raises:
        ConfigurationError: A criterion is not valid, or there is none.
    """
    if floor is None and budget_usd is None:
        raise ConfigurationError("choose(): no criterion. Set floor= (minimum nDCG@10), budget_usd=, or both.")
    if floor is not None and (
        isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor <= 1  # also refuses NaN
    ):
        raise ConfigurationError(f"floor: must be an nDCG@10, from 0 to 1 (got {floor!r:.80}).")
    if budget_usd is not None:
        parse_usd("budget_usd", budget_usd)
    if corpus_texts is not None:
        check_integer("corpus_texts", corpus_texts, 1)
    check_integer("queries_per_month", queries_per_month, 0)
    check_integer("months", months, 1)


def _price(
    candidate: Candidate,
    comparison: Comparison,
    size: int,
    corpus: list[str] | None,
    queries: int,
    months: int,
    settings: Mapping[str, Any],
) -> Option:
    """Return a candidate with its costs, rejected if they are unknown."""
    if candidate.error is not None:
        return Option(candidate, None, None, None, None, candidate.error)
    price, task = candidate.usd_per_million, comparison.task
    gigabytes = size * candidate.bytes_per_vector / 1e9
    if price is None:
        return Option(candidate, None, None, None, gigabytes, "price unknown; set prices=")
    tokens = USD.multiply(USD.divide(candidate.corpus_tokens, len(task.documents)), size)
    if corpus is not None:
        try:
            with Embedder(**_embedder_arguments(candidate, settings)) as embedder:
                tokens = Decimal(embedder.estimate(corpus, calibrated=False).tokens)
        except EmbedKitError as error:
            return Option(candidate, None, None, None, gigabytes, str(error))
    query_tokens = USD.multiply(USD.divide(candidate.query_tokens, len(task.queries)), queries)
    corpus_usd, month_usd = cost_of(tokens, price), cost_of(query_tokens, price)
    total_usd = USD.add(corpus_usd, USD.multiply(month_usd, months))
    return Option(candidate, _rounded(corpus_usd), _rounded(month_usd), _rounded(total_usd), gigabytes)


def _apply_criteria(
    option: Option, best: Candidate, floor: float | None, budget: Decimal | None, *, significant: bool
) -> Option:
    """Return an option, with the reason for rejection if it does not meet the criteria."""
    if option.rejected:
        return option
    quality, p = option.candidate.quality, option.candidate.p_value
    is_equal = significant and p is not None and p > 0.05 and floor is not None and best.quality >= floor
    if floor is not None and quality < floor and not is_equal:
        return replace(option, rejected=f"{MAIN_MEASURE} {quality:.4f} is below {floor}")
    if budget is not None and option.total_usd is not None and option.total_usd > budget:
        return replace(
            option, rejected=f"{format_usd(option.total_usd, ROUND_CEILING)} exceeds ${exact_decimal(budget)}"
        )
    return option


def _quality(option: Option) -> float:
    return option.candidate.quality if option.candidate.error is None else -1.0


def _rounded(usd: Decimal) -> Decimal:
    """Return an estimate rounded to six decimal places."""
    return USD.quantize(usd, Decimal("0.000001"))


def _criteria(floor: float | None, budget: Decimal | None, size: int, queries: int, months: int) -> str:
    criteria = []
    if floor is not None:
        criteria.append(f"cheapest with {MAIN_MEASURE} of at least {floor}")
    if budget is not None:
        criteria.append(f"{'' if criteria else 'best '}within ${exact_decimal(budget)}")
    use = f"{count_noun(queries, 'query', 'queries')} per month over {count_noun(months, 'month')}"
    return f"{', '.join(criteria)}, for {count_noun(size, 'text')} and {use}"


def _option_data(option: Option) -> dict[str, Any]:
    candidate = option.candidate
    usd = {"corpus_usd": option.corpus_usd, "month_usd": option.month_usd, "total_usd": option.total_usd}
    return {
        "model": candidate.model,
        "dimensions": candidate.dimensions,
        "dtype": candidate.dtype,
        MAIN_MEASURE: None if candidate.error is not None else candidate.quality,
        **{name: None if amount is None else exact_decimal(amount) for name, amount in usd.items()},
        "gigabytes": option.gigabytes,
        "rejected": option.rejected or None,
    }


def _cells(option: Option, chosen: bool) -> list[str]:
    candidate = option.candidate
    return [
        shorten_model_name(candidate.model, 40),
        str(candidate.dimensions or "?"),
        candidate.dtype,
        "" if candidate.error is not None else f"{candidate.quality:.4f}",
        format_usd(option.corpus_usd),
        format_usd(option.month_usd),
        format_usd(option.total_usd),
        "unknown" if option.gigabytes is None else f"{option.gigabytes:,.3f} GB",
        "chosen" if chosen else option.rejected or "more expensive or lower quality",
    ]
