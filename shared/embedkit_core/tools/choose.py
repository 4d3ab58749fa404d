"""The cheapest model that is good enough, or the best that can be afforded; for a whole index, never text by text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from embedkit_core.common.errors import ConfigurationError, EmbedKitError
from embedkit_core.common.formatting import shorten_model_name
from embedkit_core.common.usage import MILLION
from embedkit_core.common.validation import check_integer, parse_usd
from embedkit_core.costs.tracker import format_cost
from embedkit_core.embedder import Embedder
from embedkit_core.tools.compare import MAIN, Candidate, Comparison
from embedkit_core.tools.comparison_plan import InMemoryCache
from embedkit_core.tools.tables import table


@dataclass(frozen=True, slots=True)
class Option:
    """One model for the job: what it costs at first and in a month, and why it is not taken, if it is not.

    The numbers are None where they are unknown, `gigabytes`, those of the index, where the model failed.
    """

    candidate: Candidate
    corpus_usd: Decimal | None
    month_usd: Decimal | None
    total_usd: Decimal | None
    gigabytes: float | None
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was chosen and all that were weighed, the cheapest first; `chosen` is None where none will do."""

    chosen: Option | None
    options: tuple[Option, ...]
    asked: str

    def table(self) -> str:
        """Give a table in Markdown of all that was weighed, and why."""
        head = ["model", "dimensions", "type", MAIN, "corpus", "a month", "in all", "index", "because"]
        rows = [_cells(option, option is self.chosen) for option in self.options]
        return f"{self.asked}\n\n{table(head, rows)}"

    def embedder(self, **settings: Any) -> Embedder:
        """Make the embedder that was chosen, as it was compared, with further settings.

        Raises:
            ConfigurationError: none was.
        """
        if self.chosen is None:
            raise ConfigurationError(f"no model will do: {self.asked}; the table says why")
        return Embedder(**_arguments(self.chosen.candidate, settings))


def _arguments(one: Candidate, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments that a model was compared with, but for `settings`."""
    compared = {name: value for name, value in one.settings.items() if name != "on_error"}
    if isinstance(compared.get("cache"), InMemoryCache):
        compared["cache"] = False
    own = {"model": one.model, "dimensions": one.dimensions, "dtype": one.dtype}
    return {**own, **compared, **settings}


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
    """Choose from what was compared: the cheapest with an nDCG@10 of `floor` or more, or the best within a budget.

    The corpus has `corpus_texts` texts as long as those compared, or is `texts`: then what the cache has of them is
    free. A query is as long as those compared. Costs are those of the corpus and of `months` of queries, as estimated
    without bills, so that the choice is the same in every run.
    With `significant`, a model that is not shown to be worse than the best one (p over 0.05) counts as as good as it.
    `settings` are an embedder's arguments, `cache` say, for counting what is there.

    Raises:
        ConfigurationError: neither a floor nor a budget is given, or there is nothing to choose from.
    """
    if not isinstance(comparison, Comparison):
        raise ConfigurationError(f"choose takes what compare() gives, not {type(comparison).__name__}")
    if floor is None and budget_usd is None:
        raise ConfigurationError("choose needs floor=, the nDCG@10 that is good enough, or budget_usd=, or both")
    budget = None if budget_usd is None else parse_usd("budget_usd", budget_usd)
    check_integer("queries_per_month", queries_per_month, 0)
    check_integer("months", months, 1)
    own = None if texts is None else list(texts)
    size = len(own) if own is not None else corpus_texts or len(comparison.task.documents)
    check_integer("corpus_texts", size, 1)
    weighed = [_weighed(c, comparison, size, own, queries_per_month, months, settings) for c in comparison.candidates]
    best = comparison.best
    options = [_judged(option, best, floor, budget, significant=significant) for option in weighed]
    good = [option for option in options if not option.rejected]
    if floor is not None:  # the cheapest of those that are good enough, the better of equals
        good.sort(key=lambda o: (o.total_usd is None, o.total_usd or 0, -o.candidate.quality, o.gigabytes or 0))
    else:
        good.sort(key=lambda o: (-o.candidate.quality, o.total_usd or 0, o.gigabytes or 0))
    asked = _asked(floor, budget, size, queries_per_month, months)
    ordered = sorted(options, key=lambda o: (o.total_usd is None, o.total_usd or 0, -_quality(o)))
    return Choice(good[0] if good else None, tuple(ordered), asked)


def _weighed(
    one: Candidate,
    comparison: Comparison,
    size: int,
    own: list[str] | None,
    queries: int,
    months: int,
    settings: Mapping[str, Any],
) -> Option:
    if one.error is not None:
        return Option(one, None, None, None, None, one.error)
    price, task = one.usd_per_million, comparison.task
    gigabytes = size * one.bytes_per_vector / 1e9
    if price is None:
        return Option(one, None, None, None, gigabytes, "its price is not known: prices= says it")
    tokens = Decimal(one.corpus_tokens) / len(task.documents) * size
    if own is not None:
        try:
            with Embedder(**_arguments(one, settings)) as embedder:
                tokens = Decimal(embedder.estimate(own, calibrated=False).tokens)
        except EmbedKitError as error:
            return Option(one, None, None, None, gigabytes, str(error))
    each = Decimal(one.query_tokens) / len(task.queries)
    corpus, month = tokens * price / MILLION, each * queries * price / MILLION
    return Option(one, _cents(corpus), _cents(month), _cents(corpus + month * months), gigabytes)


def _judged(
    option: Option, best: Candidate, floor: float | None, budget: Decimal | None, *, significant: bool
) -> Option:
    if option.rejected:
        return option
    quality, p = option.candidate.quality, option.candidate.p_value
    as_good = significant and p is not None and p > 0.05 and floor is not None and best.quality >= floor
    if floor is not None and quality < floor and not as_good:
        return replace(option, rejected=f"{MAIN} {quality:.4f} is under {floor}")
    if budget is not None and option.total_usd is not None and option.total_usd > budget:
        return replace(option, rejected=f"{format_cost(option.total_usd)} is over {format_cost(budget)}")
    return option


def _quality(option: Option) -> float:
    return option.candidate.quality if option.candidate.error is None else -1.0


def _cents(usd: Decimal) -> Decimal:
    """Give an estimate in six digits after the point: more would be noise."""
    return usd.quantize(Decimal("0.000001"))


def _asked(floor: float | None, budget: Decimal | None, size: int, queries: int, months: int) -> str:
    wanted = []
    if floor is not None:
        wanted.append(f"the cheapest with {MAIN} of {floor} or more")
    if budget is not None:
        wanted.append(f"within {format_cost(budget)}" if wanted else f"the best within {format_cost(budget)}")
    return f"{', '.join(wanted)}, for {size:,} texts and {queries:,} queries a month over {months} months"


def _cells(option: Option, chosen: bool) -> list[str]:
    one = option.candidate
    return [
        shorten_model_name(one.model, 40),
        str(one.dimensions or "?"),
        one.dtype,
        "" if one.error is not None else f"{one.quality:.4f}",
        format_cost(option.corpus_usd),
        format_cost(option.month_usd),
        format_cost(option.total_usd),
        "unknown" if option.gigabytes is None else f"{option.gigabytes:,.3f} GB",
        "chosen" if chosen else option.rejected or "dearer, or not as good",
    ]
