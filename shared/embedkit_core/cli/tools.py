"""Commands `compare`, `choose` and `bench`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from embedkit_core.cli import options as o
from embedkit_core.cli.console import BUDGET, FAILED, app, check_budget, confirm, err, format_price, show, wording
from embedkit_core.cli.outputs import Outputs
from embedkit_core.cli.reading import RecordSource
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

Models = Annotated[list[str], typer.Argument(help="Models to compare, as in openai:text-embedding-3-small.")]
Data = Annotated[str | None, typer.Option(help="Folder in BEIR layout.")]
Questions = Annotated[str | None, typer.Option(help="CSV file with the columns question and answer.")]
Texts = Annotated[
    list[str] | None,
    typer.Option(help="Texts without judgements: the first half of each text is the query for its second half."),
]
DimensionsList = Annotated[
    str, typer.Option("--dimensions", help="Dimensions to compare, as in 1536,512,256; empty for the model's default.")
]
DTypesList = Annotated[str, typer.Option("--dtypes", help="Dtypes to compare, as in float32,int8.")]
ChartOption = Annotated[str | None, typer.Option(help="Write a chart to a .png, .svg or .pdf file.")]
ReportOption = Annotated[str | None, typer.Option(help="Write a self-contained HTML report.")]


@app.command(name="compare")
def compare_command(
    models: Models,
    data: Data = None,
    questions: Questions = None,
    texts: Texts = None,
    column: o.Column = "text",
    skip_empty: o.SkipEmpty = False,
    dimensions: DimensionsList = "",
    dtypes: DTypesList = "float32",
    cache: o.CacheOption = None,
    base_url: o.BaseUrl = None,
    budget_usd: o.BudgetOption = None,
    budget_name: o.BudgetName = None,
    chart: ChartOption = None,
    report: ReportOption = None,
    csv_file: Annotated[str | None, typer.Option("--csv", help="Write all numbers to a CSV file.")] = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Compare models on your own texts: quality with confidence intervals, cost, time and size.

    Example: `rag-embedkit compare openai:text-embedding-3-small voyage:voyage-4 --data scifact --chart models.png`
    """
    check_installed("compare")
    outputs = Outputs(chart, report, csv_file, inputs=[*(texts or ()), *([questions] if questions else ())])
    task = _task(data, questions, texts, column, skip_empty=skip_empty)
    budget = {"budget_usd": budget_usd, "budget_name": budget_name}
    comparison = _compare(models, task, dimensions, dtypes, cache, base_url, budget, yes=yes, quiet=quiet)
    show(wording(comparison.table()), comparison.to_dict(), as_json=as_json)
    outputs.write(comparison)
    if any(candidate.over_budget for candidate in comparison.candidates):
        raise typer.Exit(BUDGET)
    if all(candidate.error is not None for candidate in comparison.candidates):
        raise typer.Exit(FAILED)


@app.command(name="choose")
def choose_command(
    models: Models,
    data: Data = None,
    questions: Questions = None,
    texts: Texts = None,
    column: o.Column = "text",
    skip_empty: o.SkipEmpty = False,
    dimensions: DimensionsList = "",
    dtypes: DTypesList = "float32",
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
    cache: o.CacheOption = None,
    base_url: o.BaseUrl = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
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
    task = _task(data, questions, texts, column, skip_empty=skip_empty)
    comparison = _compare(models, task, dimensions, dtypes, cache, base_url, {"budget_usd": None}, yes=yes, quiet=quiet)
    choice = choose(comparison, **criteria)
    chosen = None if choice.chosen is None else choice.chosen.candidate
    output: dict[str, Any] = {"criteria": choice.criteria, "chosen": None}
    rejected = [option if not option.rejected else _reworded(option) for option in choice.options]
    text = replace(choice, options=tuple(rejected)).table()
    if chosen is not None:
        output["chosen"] = _embedder_arguments(chosen)
        model, *others = (f"{name}={json.dumps(value)}" for name, value in _embedder_arguments(chosen).items())
        text += f"\n\nEmbedder({', '.join([model.partition('=')[2], *others])})"
    show(text, output, as_json=as_json)
    if chosen is None:
        raise typer.Exit(FAILED)


@app.command(name="bench")
def bench_command(
    model: Annotated[str, typer.Argument(help="The model, as provider:model.")],
    sizes: Annotated[str, typer.Option(help="Job sizes, in texts.")] = "100,500,1000",
    most: Annotated[int, o.integer("Maximum number of requests in flight to try.")] = 64,
    base_url: o.BaseUrl = None,
    chart: ChartOption = None,
    report: ReportOption = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Measure sequential and concurrent throughput and query latency of a model, and recommend max_concurrency."""
    check_installed("bench")
    outputs = Outputs(chart, report)
    jobs = _numbers("--sizes", sizes, "100,500")
    with Embedder(model, base_url=base_url, cache=False) as embedder:
        cost = estimate_cost(embedder, jobs, most=most)
        if cost.cost_usd is None or cost.cost_usd > 0:
            confirm(f"measure {cost}?", yes=yes)
    result = bench(model, sizes=jobs, most=most, base_url=base_url, log=_log(quiet))
    show(result.table(), result.to_dict(), as_json=as_json)
    outputs.write(result)


def _compare(
    models: list[str],
    task: Task,
    dimensions: str,
    dtypes: str,
    cache: str | None,
    base_url: str | None,
    budget: dict[str, str | None],
    *,
    yes: bool,
    quiet: bool,
) -> Comparison:
    widths: list[int | None] = [*_numbers("--dimensions", dimensions, "1536,256")] or [None]
    types = [name.strip() for name in dtypes.split(",")]
    for name in types:
        check_choice("--dtypes", name, DTYPES)
    settings: dict[str, Any] = {"cache": cache, **budget}
    model_arguments = [model_settings(model, base_url) for model in models]
    _check_cost(model_arguments, task, settings, yes=yes)
    return compare(
        model_arguments,
        task,
        dimensions=widths,
        dtypes=types,  # type: ignore[arg-type]  # checked above
        progress=not quiet and err.is_terminal,
        log=_log(quiet),
        **settings,
    )


def _check_cost(models: list[dict[str, Any]], task: Task, settings: dict[str, Any], *, yes: bool) -> None:
    """Check the models and the budget, and ask for confirmation before anything is sent to paid models.

    Raises:
        ConfigurationError: A model is unknown, or its API key or extra is missing.
        BudgetError: The estimated cost exceeds the budget.
    """
    estimates, costs = [], []
    for model in models:
        with Embedder(**model, **settings) as embedder:
            found = [
                embedder.estimate(task.documents.values()),
                embedder.estimate(task.queries.values(), input_type="query"),
            ]
            estimates += found
            if found[0].texts_to_send and (found[0].cost_usd is None or found[0].cost_usd > 0):
                costs.append(f"{embedder.model} for {format_price(found[0].cost_usd)}")
    check_budget(estimates, None if settings["budget_usd"] is None else parse_usd("budget_usd", settings["budget_usd"]))
    if costs:
        confirm(f"embed {count_noun(len(task.documents), 'document')} with {', '.join(costs)}?", yes=yes)


def _task(data: str | None, questions: str | None, texts: list[str] | None, column: str, *, skip_empty: bool) -> Task:
    if sum(option is not None for option in (data, questions, texts or None)) != 1:
        raise ConfigurationError("Set exactly one of --data (folder), --questions (CSV file) and --texts (files).")
    if data is not None:
        return load_beir(data)
    if questions is not None:
        return load_questions(questions)
    with RecordSource(texts or [], column, "id", skip_empty=skip_empty) as source:
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


def _log(quiet: bool) -> Any:
    return (lambda line: None) if quiet else (lambda line: err.print(wording(line)))  # noqa: ARG005
