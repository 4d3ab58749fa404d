"""Commands `embed`, `estimate`, `models` and `explain`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Unpack

import typer

from embedkit_core.cli import options as o
from embedkit_core.cli.console import app, check_budget, confirm, err, format_price, show, table_width, wording
from embedkit_core.cli.outputs import Outputs
from embedkit_core.cli.reading import Record, RecordSource
from embedkit_core.cli.writing import Output
from embedkit_core.common.errors import (
    BadTextError,
    ConfigurationError,
    EmbedKitError,
    PartialFailureError,
    TextTooLongError,
)
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.types import InputType, ModelInfo
from embedkit_core.embedder import Embedder
from embedkit_core.providers.catalogue import models as catalogue_models
from embedkit_core.providers.registry import is_provider, provider_class
from embedkit_core.tools.tables import table, to_csv


class RunSettings(
    o.InputSettings, o.ModelSettings, o.VectorSettings, o.ServerSettings, o.PriceSettings, o.NoCacheSettings
):
    """Options of `embed` and `estimate`."""

    input_type: o.InputTypeOption
    on_empty_text: o.OnEmptyText
    max_concurrency: o.Concurrency
    cache: o.CacheOption


class EmbedSettings(RunSettings, o.BudgetSettings):
    """Options of `embed`."""

    id_column: o.IdColumn
    coordination: o.CoordinationOption


@app.command()
@o.with_settings
def embed(
    inputs: o.Inputs,
    output: Annotated[str, typer.Option("--output", "-o", help="Output file: .parquet, .jsonl or .npy.")],
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
    **settings: Unpack[EmbedSettings],
) -> None:
    """Embed texts into a file. Show the cost and ask for confirmation first. A rerun sends only the remaining texts.

    Example: `rag-embedkit embed docs/ -o vectors.parquet -m openai:text-embedding-3-small`
    """
    file, input_type = Output(output), o.as_input_type(settings["input_type"])
    with o.record_source(inputs, settings, output=output) as source, o.make_embedder(settings) as embedder, file:
        embed_all(embedder, source, file, input_type, yes=yes, quiet=quiet)
        usage, rows = embedder.usage, file.rows
    show(
        f"{output}: {count_noun(rows, 'row')}; {usage}",
        {"output": output, "rows": rows, **usage.to_dict()},
        as_json=as_json,
    )


@app.command()
@o.with_settings
def estimate(inputs: o.Inputs, as_json: o.Json = False, **settings: Unpack[RunSettings]) -> None:
    """Estimate cache hits, tokens, cost, requests and time of embedding texts. Send nothing."""
    input_type = o.as_input_type(settings["input_type"])
    with o.record_source(inputs, settings) as source, o.make_embedder(settings, sends=False) as embedder:
        result = embedder.estimate(source.texts(), input_type=input_type)
    text = f"{result.model}: {result}\ntokens: {result.token_source}; price: {result.price_source}"
    show(wording(text), result.to_dict(), as_json=as_json)


@app.command()
def models(
    provider: Annotated[str | None, typer.Argument(help="List models of this provider only.")] = None,
    csv: o.Csv = None,
    wide: o.Wide = False,
    as_json: o.Json = False,
) -> None:
    """List the models of the catalogue with dimensions, limits, prices and, with --json, dtypes.

    A price in parentheses is not from a page of the provider; a budget in USD then needs --price.
    """
    outputs = Outputs(csv, as_json=as_json)
    listed: list[dict[str, Any]] = [
        {
            "model": f"{m.provider}:{m.name}",
            "dimensions": m.dimensions,
            "text_tokens": m.limits.text_tokens,
            "dtypes": list(m.dtypes),
            "usd_per_million": _list_price(m),
            "confirmed": m.confirmed,
            "status": m.status,
        }
        for m in _catalogue_rows(provider)
    ]
    columns = ("model", "dimensions", "text_tokens", "usd_per_million", "status")
    shown = {None: "?", "0": "free"}
    cells = [[str(shown.get(row[name], row[name])) for name in columns] for row in listed]
    price = columns.index("usd_per_million")
    for line, row in zip(cells, listed, strict=True):
        line[price] = f"({line[price]})" if not row["confirmed"] and row["usd_per_million"] else line[price]
    text = table(["model", "dimensions", "max tokens", "USD per 1M tokens", "status"], cells, table_width(wide=wide))
    outputs.show(text if listed else f"The catalogue has no models of {provider!r}.", listed, to_csv(listed))


def _catalogue_rows(provider: str | None) -> tuple[ModelInfo, ...]:
    """Return the rows of a provider; none if it is registered and only serves models of others, such as vLLM."""
    if provider is not None and is_provider(provider) and all(m.provider != provider for m in catalogue_models()):
        return ()
    return catalogue_models(provider)


def _list_price(model: ModelInfo) -> str | None:
    """Return USD per million tokens: "0" for a model that runs on this machine, None if unknown."""
    if model.usd_per_million is not None:
        return str(model.usd_per_million)
    return "0" if is_provider(model.provider) and provider_class(model.provider).is_local else None


class ExplainSettings(o.ModelSettings, o.VectorSettings):
    """Options of `explain`."""

    input_type: o.InputTypeOption
    cache: o.CacheOption
    base_url: o.BaseUrl


@app.command()
@o.with_settings
def explain(
    text: Annotated[str, typer.Argument(help="The text to explain.")],
    as_json: o.Json = False,
    **settings: Unpack[ExplainSettings],
) -> None:
    """Show the request body, the cache key and the source of the vector for a text. Send nothing."""
    with o.make_embedder(settings, sends=False) as embedder:
        explanation = embedder.explain(text, input_type=o.as_input_type(settings["input_type"]))
    data: dict[str, Any] = {
        "model": explanation.model,
        "endpoint": explanation.endpoint,
        "request_body": dict(explanation.request_body),
        "key": explanation.key,
        "key_parts": dict(explanation.key_parts),
        "served_from": explanation.served_from,
        "cache": explanation.cache,
        "estimated_tokens": explanation.estimated_tokens,
        "usd_per_million": None if explanation.usd_per_million is None else str(explanation.usd_per_million),
        "price_source": explanation.price_source,
    }
    show("\n".join(f"{name}: {value}" for name, value in data.items()), data, as_json=as_json)


def embed_all(
    embedder: Embedder, source: RecordSource, file: Output | None, input_type: InputType, *, yes: bool, quiet: bool
) -> None:
    """Embed all records of a source into a file, or into the cache only if `file` is None.

    Shows the estimated cost and asks for confirmation first.
    """
    estimated = embedder.estimate(source.texts(), input_type=input_type)
    if not quiet:
        if source.skipped:
            err.print(f"{count_noun(source.skipped, 'row')} without a text skipped")
        err.print(f"{embedder.model}: {estimated}")
    if not estimated.texts:
        not_written = f" {str(file.path)!r} was not written." if file is not None else ""
        raise ConfigurationError(f"The inputs have no texts.{not_written}")
    check_budget([estimated], embedder.budget.limit_usd if embedder.budget else None)
    if estimated.cost_usd is None or estimated.cost_usd > 0:
        confirm(f"send {count_noun(estimated.texts_to_send, 'text')} for {format_price(estimated.cost_usd)}?", yes=yes)
    embedded, written = itertools.tee(source.records())
    texts: Iterable[str] = (record.text for record in embedded)
    progress = not quiet and sys.stderr.isatty()
    if progress:
        texts = _SizedTexts(texts, estimated.texts)
    rows = embedder.embed_iter(texts, input_type=input_type, progress=progress)
    records: Iterator[Record] = written
    try:
        for record, row in zip(records, rows, strict=True):
            if file is not None:
                file.add(record, row)
    except (PartialFailureError, BadTextError, TextTooLongError) as error:
        if isinstance(error, BadTextError) and not error.text_is_cause:
            raise
        raise _with_location(error, embedder, source) from None


def _with_location(error: EmbedKitError, embedder: Embedder, source: RecordSource) -> EmbedKitError:
    """Return the error of a text with its file and line instead of its position."""
    position, cause = next(iter(error.failed.items())) if isinstance(error, PartialFailureError) else (0, error)
    record = next(itertools.islice(source.records(), position, None))
    rerun = (
        ". Finished vectors are in the cache: a rerun sends only the rest." if embedder.vector_cache.backend else "."
    )
    error.args = (f"{record.location}: {str(cause).rstrip('.')}{rerun}",)
    return error


class _SizedTexts:
    """Texts with a known length, for the progress bar."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self._texts, self._n = texts, n

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return self._n
