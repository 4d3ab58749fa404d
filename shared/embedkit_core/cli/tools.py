"""Commands `compare`, `choose` and `bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Unpack

import typer

from embedkit_core.cli import options as o
from embedkit_core.cli.console import (
    BUDGET,
    FAILED,
    app,
    check_budget,
    confirm,
    err,
    format_price,
    table_width,
    wording,
)
from embedkit_core.cli.outputs import Outputs
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.validation import check_choice, parse_usd
from embedkit_core.embedder import Embedder
from embedkit_core.tools import (
    Candidate,
    Comparison,
    Task,
    bench,
    choose,
    compare,
    load_beir,
    load_questions,
    self_retrieval,
)
from embedkit_core.tools.bench import estimate_cost
from embedkit_core.tools.choose import Option, check_criteria
from embedkit_core.tools.compare import DTYPES
from embedkit_core.tools.comparison_plan import model_settings
from embedkit_core.tools.extra import check_installed

OWN = "own"  # the model's default dimensions
COMMON_ARGUMENTS = (  # of all compared models
    *("task", "on_long_text", "timeout", "requests_per_minute", "tokens_per_minute", "max_concurrency"),
    *("cache", "coordination"),
)
Models = Annotated[
    list[str],
    typer.Argument(help="Models to compare, as in openai:text-embedding-3-small.", autocompletion=o.complete_model),
]
ChartOption = Annotated[str | None, typer.Option(help="Write a chart to a .png, .svg or .pdf file.")]
ReportOption = Annotated[str | None, typer.Option(help="Write a self-contained HTML report.")]


class CompareSettings(o.InputSettings, o.VectorSettings, o.ServerSettings, o.SharedSettings):
    """Options of `compare` and `choose`."""

    data: Annotated[str | None, typer.Option(help="Folder in BEIR layout.")]
    questions: Annotated[str | None, typer.Option(help="CSV file with the columns question and answer.")]
    texts: Annotated[
        list[str] | None,
        typer.Option(help="Texts without judgements: the first half of each text is the query for its second half."),
    ]
    dimensions: Annotated[
        str | None,
        typer.Option(help="Dimensions to compare, as in own,512,256; own, the model's default, if omitted."),
    ]
    dtypes: Annotated[str | None, typer.Option(help="Dtypes to compare, as in float32,int8; float32 if omitted.")]
    max_concurrency: o.Concurrency
    prices: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="MODEL=USD", help="USD per million tokens of a model, for each that needs it."),
    ]


class BudgetedSettings(CompareSettings, o.BudgetSettings):
    """Options of `compare`."""


class BenchSettings(o.ModelSettings, o.VectorSettings, o.ServerSettings):
    """Options of `bench`."""


@app.command(name="compare")
@o.with_settings
def compare_command(
    models: Models,
    chart: ChartOption = None,
    report: ReportOption = None,
    csv: o.Csv = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    wide: o.Wide = False,
    as_json: o.Json = False,
    **settings: Unpack[BudgetedSettings],
) -> None:
    """Compare models on your own texts: quality with confidence intervals, cost, time and size.

    Example: `rag-embedkit compare openai:text-embedding-3-small voyage:voyage-4 --data scifact --chart models.png`
    """
    check_installed("compare")
    outputs = Outputs(csv, as_json=as_json, chart=chart, report=report, inputs=_inputs(settings))
    comparison = _compare(models, _task(settings), settings, yes=yes, quiet=quiet)
    outputs.show(comparison.table(width=table_width(wide=wide)), comparison.to_dict(), comparison.to_csv())
    outputs.draw(comparison)
    if any(candidate.over_budget for candidate in comparison.candidates):
        raise typer.Exit(BUDGET)
    if all(candidate.error is not None for candidate in comparison.candidates):
        raise typer.Exit(FAILED)


@app.command(name="choose")
@o.with_settings
def choose_command(
    models: Models,
    floor: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Minimum nDCG@10, 0 to 1: choose the cheapest model that reaches it."),
    ] = None,
    budget_usd: Annotated[
        str | None, typer.Option(metavar="USD", help="Maximum total cost in USD: choose the best model within it.")
    ] = None,
    corpus_texts: Annotated[int | None, o.integer("Number of texts in the corpus.")] = None,
    queries_per_month: Annotated[int, o.integer("Number of queries per month.")] = 0,
    months: Annotated[int, o.integer("Number of months.")] = 12,
    csv: o.Csv = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    wide: o.Wide = False,
    as_json: o.Json = False,
    **settings: Unpack[CompareSettings],
) -> None:
    """Compare models, then choose the cheapest one above a minimum quality or the best one within a budget."""
    check_installed("choose")
    criteria: dict[str, Any] = {
        "floor": None if floor is None else _number("--floor", floor),
        "budget_usd": budget_usd,
        "corpus_texts": corpus_texts,
        "queries_per_month": queries_per_month,
        "months": months,
    }
    check_criteria(**criteria)
    outputs = Outputs(csv, as_json=as_json, inputs=_inputs(settings))
    comparison = _compare(models, _task(settings), settings, yes=yes, quiet=quiet)
    choice = choose(comparison, **criteria)
    options = [option if not option.rejected else _reworded(option) for option in choice.options]
    choice = replace(choice, options=tuple(options))
    text, chosen = choice.table(width=table_width(wide=wide)), None
    if choice.chosen is not None:
        chosen = _embedder_arguments(choice.chosen.candidate)
        model, *others = (f"{name}={json.dumps(value)}" for name, value in chosen.items())
        text += f"\n\nEmbedder({', '.join([model.partition('=')[2], *others])})"
    outputs.show(text, {**choice.to_dict(), "chosen": chosen}, choice.to_csv())
    if chosen is None:
        raise typer.Exit(FAILED)


@app.command(name="bench")
@o.with_settings
def bench_command(
    sizes: Annotated[str, typer.Option(help="Job sizes, in texts.")] = "100,500,1000",
    most: Annotated[int, o.integer("Maximum number of requests in flight to try.")] = 64,
    chart: ChartOption = None,
    report: ReportOption = None,
    csv: o.Csv = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    wide: o.Wide = False,
    as_json: o.Json = False,
    **settings: Unpack[BenchSettings],
) -> None:
    """Measure sequential and concurrent throughput and query latency of a model, and recommend max_concurrency."""
    check_installed("bench")
    outputs = Outputs(csv, as_json=as_json, chart=chart, report=report)
    jobs = _numbers("--sizes", sizes, "100,500")
    with o.make_embedder({**settings, "cache": False}) as embedder:
        cost = estimate_cost(embedder, jobs, most=most)
        if cost.cost_usd is None or cost.cost_usd > 0:
            confirm(f"measure {cost}?", yes=yes)
    result = bench(sizes=jobs, most=most, log=_log(quiet), **settings)
    outputs.show(wording(result.table(width=table_width(wide=wide))), result.to_dict(), result.to_csv())
    outputs.draw(result)


def _compare(models: list[str], task: Task, settings: Mapping[str, Any], *, yes: bool, quiet: bool) -> Comparison:
    widths = _widths(OWN if settings["dimensions"] is None else settings["dimensions"])
    types = [name.strip() for name in (settings["dtypes"] or "float32").split(",")]
    for name in types:
        check_choice("--dtypes", name, DTYPES)
    common = {name: settings[name] for name in COMMON_ARGUMENTS}
    prices = _prices(settings["prices"] or (), models)
    model_arguments = [
        {**common, "prices": prices.get(model), **model_settings(model, settings["base_url"])} for model in models
    ]
    budget = {name: settings.get(name) for name in ("budget_usd", "budget_name")}
    _check_cost(model_arguments, task, budget, yes=yes)
    compared = compare(
        model_arguments,
        task,
        dimensions=widths,
        dtypes=types,  # type: ignore[arg-type]  # checked above
        progress=not quiet and err.is_terminal,
        log=_log(quiet),
        **budget,  # type: ignore[arg-type]
    )
    reworded = (c if c.error is None else replace(c, error=wording(c.error)) for c in compared.candidates)
    return replace(compared, candidates=tuple(reworded))


def _prices(values: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return `prices=` of each model of --price.

    Raises:
        ConfigurationError: A value has no price, or is for a model that is not compared.
    """
    prices = {}
    for value in values:
        model, _, price = value.rpartition("=")
        if model not in models:
            example = f"{models[0]}=0.02"
            raise ConfigurationError(
                f"--price: must be a compared model and USD per million tokens (got {value!r:.200}). Use for example "
                f"--price {example}."
            )
        prices[model] = o.model_prices(model, price)
    return prices


def _inputs(settings: Mapping[str, Any]) -> list[str]:
    """Return the paths of the files that the task is read from."""
    return [*(settings["texts"] or ()), *filter(None, [settings["questions"]])]


def _check_cost(models: list[dict[str, Any]], task: Task, budget: dict[str, Any], *, yes: bool) -> None:
    """Check the models and the budget, and ask for confirmation before anything is sent to paid models.

    Raises:
        ConfigurationError: A model is unknown, or its API key or extra is missing.
        BudgetError: The estimated cost exceeds the budget.
    """
    estimates, costs = [], []
    for model in models:
        with Embedder(**model, **budget) as embedder:
            found = [
                embedder.estimate(task.documents.values()),
                embedder.estimate(task.queries.values(), input_type="query"),
            ]
            estimates += found
            if found[0].texts_to_send and (found[0].cost_usd is None or found[0].cost_usd > 0):
                costs.append(f"{embedder.model} for {format_price(found[0].cost_usd)}")
    limit = budget["budget_usd"]
    check_budget(estimates, None if limit is None else parse_usd("budget_usd", limit))
    if costs:
        confirm(f"embed {count_noun(len(task.documents), 'document')} with {', '.join(costs)}?", yes=yes)


def _task(settings: Mapping[str, Any]) -> Task:
    data, questions, texts = settings["data"], settings["questions"], settings["texts"]
    if sum(option is not None for option in (data, questions, texts or None)) != 1:
        raise ConfigurationError("Set exactly one of --data (folder), --questions (CSV file) and --texts (files).")
    if not texts:
        for name in o.InputSettings.__annotations__:
            if settings[name] != o.DEFAULTS[name]:
                raise ConfigurationError(f"--{name.replace('_', '-')}: needs --texts. Remove it.")
    if data is not None:
        return load_beir(data)
    if questions is not None:
        return load_questions(questions)
    assert texts  # the third of the three
    with o.record_source(texts, settings) as source:
        return self_retrieval(source.texts())


def _reworded(option: Option) -> Option:
    """Return an option of `choose` whose rejection names options of the command."""
    return replace(option, rejected=wording(option.rejected))


def _embedder_arguments(chosen: Candidate) -> dict[str, Any]:
    """Return the arguments that create the compared embedder again."""
    arguments = {"model": chosen.model, "dimensions": chosen.dimensions, "dtype": chosen.dtype}
    base_url = chosen.settings.get("base_url")
    return arguments if base_url is None else {**arguments, "base_url": base_url}


def _number(option: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigurationError(f"{option}: must be a number (got {value!r}).") from None


def _numbers(option: str, value: str, example: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise ConfigurationError(f"{option}: must be whole numbers, as in {example} (got {value!r}).") from None


def _widths(value: str) -> list[int | None]:
    """Return the dimensions to compare; None is the model's default."""
    parts = [part.strip().lower() for part in value.split(",") if part.strip()]
    if not parts:
        raise ConfigurationError("--dimensions: is empty. Use for example --dimensions own,256.")
    try:
        return [None if part == OWN else int(part) for part in parts]
    except ValueError:
        raise ConfigurationError(
            f"--dimensions: must be whole numbers or {OWN}, as in own,512,256 (got {value!r:.80})."
        ) from None


def _log(quiet: bool) -> Any:
    return (lambda line: None) if quiet else (lambda line: err.print(wording(line)))  # noqa: ARG005
