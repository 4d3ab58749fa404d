"""compare, choose, bench."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from embedkit_core.cli import options as o
from embedkit_core.cli.console import BUDGET, FAILED, about, app, confirm, err, show
from embedkit_core.cli.outputs import Outputs
from embedkit_core.cli.reading import RecordSource
from embedkit_core.common.errors import ConfigurationError, EmbedKitError
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
from embedkit_core.tools.comparison_plan import asked_at

Models = Annotated[list[str], typer.Argument(help="Models, as in openai:text-embedding-3-small.")]
Data = Annotated[str | None, typer.Option(help="A folder in BEIR's layout.")]
Questions = Annotated[str | None, typer.Option(help="A CSV file with the columns question and answer.")]
Texts = Annotated[list[str] | None, typer.Option(help="Texts without judgements: halves are to find each other.")]
Many = Annotated[str, typer.Option("--dimensions", help="Several, as in 1536,512,256; empty for the model's own.")]
Types = Annotated[str, typer.Option("--dtypes", help="Several, as in float32,int8.")]
Chart = Annotated[str | None, typer.Option(help="Draw a chart into a .png, .svg or .pdf file.")]
Report = Annotated[str | None, typer.Option(help="Write one self-contained HTML file.")]


@app.command(name="compare")
def compare_command(
    models: Models,
    data: Data = None,
    questions: Questions = None,
    texts: Texts = None,
    column: o.Column = "text",
    dimensions: Many = "",
    dtypes: Types = "float32",
    cache: o.CacheOption = None,
    base_url: o.BaseUrl = None,
    budget_usd: o.Budget = None,
    chart: Chart = None,
    report: Report = None,
    csv_file: Annotated[str | None, typer.Option("--csv", help="Write all numbers into a CSV file.")] = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Compare models on your own texts: quality with confidence intervals, cost, time, size.

    Example: `rag-embedkit compare openai:text-embedding-3-small voyage:voyage-4 --data scifact --chart models.png`
    """
    outputs = Outputs(chart, report, csv_file)
    task = _task(data, questions, texts, column)
    found = _compared(models, task, dimensions, dtypes, cache, base_url, budget_usd, yes=yes, quiet=quiet)
    show(found.table(), found.to_dict(), as_json=as_json)
    outputs.write(found)
    if any(contender.over_budget for contender in found.candidates):
        raise typer.Exit(BUDGET)
    if all(contender.error is not None for contender in found.candidates):
        raise typer.Exit(FAILED)


@app.command(name="choose")
def choose_command(
    models: Models,
    data: Data = None,
    questions: Questions = None,
    texts: Texts = None,
    column: o.Column = "text",
    dimensions: Many = "",
    dtypes: Types = "float32",
    floor: Annotated[
        float | None, typer.Option(help="The nDCG@10 that is good enough: the cheapest is chosen.")
    ] = None,
    budget_usd: Annotated[float | None, typer.Option(help="USD in all: the best within it is chosen.")] = None,
    corpus_texts: Annotated[int | None, typer.Option(help="How many texts there will be.")] = None,
    queries_per_month: Annotated[int, typer.Option(help="How many queries a month.")] = 0,
    months: Annotated[int, typer.Option(help="For how long.")] = 12,
    cache: o.CacheOption = None,
    base_url: o.BaseUrl = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Compare models, then choose the cheapest that is good enough, or the best within a budget."""
    if floor is None and budget_usd is None:
        raise ConfigurationError("give --floor, the nDCG@10 that is good enough, or --budget-usd, or both")
    task = _task(data, questions, texts, column)
    found = _compared(models, task, dimensions, dtypes, cache, base_url, None, yes=yes, quiet=quiet)
    choice = choose(
        found,
        floor=floor,
        budget_usd=budget_usd,
        corpus_texts=corpus_texts,
        queries_per_month=queries_per_month,
        months=months,
    )
    chosen = None if choice.chosen is None else choice.chosen.candidate
    listed: dict[str, Any] = {"asked": choice.asked, "chosen": None}
    text = choice.table()
    if chosen is not None:
        listed["chosen"] = _arguments(chosen)
        model, *others = (f"{name}={json.dumps(value)}" for name, value in _arguments(chosen).items())
        text += f"\n\nEmbedder({', '.join([model.partition('=')[2], *others])})"
    show(text, listed, as_json=as_json)
    if chosen is None:
        raise typer.Exit(1)


@app.command(name="bench")
def bench_command(
    model: Annotated[str, typer.Argument(help="provider:model.")],
    sizes: Annotated[str, typer.Option(help="Jobs of so many texts.")] = "100,500,1000",
    most: Annotated[int, typer.Option(help="Requests in flight that are tried at most.")] = 64,
    base_url: o.BaseUrl = None,
    chart: Chart = None,
    report: Report = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Measure a model: one request at a time against several, latency of queries, and the setting to use."""
    outputs = Outputs(chart, report)
    jobs = _numbers("--sizes", sizes)
    with Embedder(model, base_url=base_url, cache=False) as embedder:
        told = estimate_cost(embedder, jobs, most=most)
        if told.cost_usd is None or told.cost_usd > 0:
            confirm(f"measure {told}?", yes=yes)
    found = bench(model, sizes=jobs, most=most, base_url=base_url, log=_say(quiet))
    show(found.table(), found.to_dict(), as_json=as_json)
    outputs.write(found)


def _compared(
    models: list[str],
    task: Task,
    dimensions: str,
    dtypes: str,
    cache: str | None,
    base_url: str | None,
    budget_usd: float | None,
    *,
    yes: bool,
    quiet: bool,
) -> Comparison:
    widths: list[int | None] = [*_numbers("--dimensions", dimensions)] or [None]
    settings: dict[str, Any] = {"cache": cache, "budget_usd": budget_usd}
    asked = [asked_at(model, base_url) for model in models]
    _ask(asked, task, settings, yes=yes)
    return compare(
        asked,
        task,
        dimensions=widths,
        dtypes=[name.strip() for name in dtypes.split(",")],  # type: ignore[misc]  # the embedder refuses what is none
        progress=not quiet and err.is_terminal,
        log=_say(quiet),
        **settings,
    )


def _ask(models: list[dict[str, Any]], task: Task, settings: dict[str, Any], *, yes: bool) -> None:
    """Ask before paid models are sent anything; those that cannot be made are told of later."""
    costs = []
    for model in models:
        try:
            with Embedder(**model, **settings) as embedder:
                told = embedder.estimate(task.documents.values())
                if told.texts_to_send and (told.cost_usd is None or told.cost_usd > 0):
                    costs.append(f"{embedder.model} for {about(told.cost_usd)}")
        except EmbedKitError:
            continue
    if costs:
        confirm(f"embed {len(task.documents):,} documents with {', '.join(costs)}?", yes=yes)


def _task(data: str | None, questions: str | None, texts: list[str] | None, column: str) -> Task:
    if sum(given is not None for given in (data, questions, texts or None)) != 1:
        raise ConfigurationError("give one of --data (a folder), --questions (a CSV file) and --texts (files)")
    if data is not None:
        return load_beir(data)
    if questions is not None:
        return load_questions(questions)
    with RecordSource(texts or [], column, "id") as source:
        return self_retrieval(source.texts())


def _arguments(chosen: Candidate) -> dict[str, Any]:
    """Give the arguments of an embedder that is as the one compared."""
    named = {"model": chosen.model, "dimensions": chosen.dimensions, "dtype": chosen.dtype}
    base_url = chosen.settings.get("base_url")
    return named if base_url is None else {**named, "base_url": base_url}


def _numbers(option: str, value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise ConfigurationError(f"{option} takes whole numbers, as in 1536,256, not {value!r}") from None


def _say(quiet: bool) -> Any:
    return (lambda line: None) if quiet else err.print  # noqa: ARG005
