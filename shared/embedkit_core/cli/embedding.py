"""embed, estimate, models, explain."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from embedkit_core.cli import options as o
from embedkit_core.cli.console import about, app, confirm, err, show
from embedkit_core.cli.reading import Record, RecordSource
from embedkit_core.cli.writing import Output
from embedkit_core.common.errors import BadTextError, EmbedKitError, PartialFailureError, TextTooLongError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.types import InputType
from embedkit_core.embedder import Embedder
from embedkit_core.providers.catalogue import models as catalogue_models
from embedkit_core.tools.tables import table


@app.command()
def embed(
    inputs: o.Inputs,
    output: Annotated[str, typer.Option("--output", "-o", help="A file that ends with .parquet, .jsonl or .npy.")],
    model: o.Model,
    column: o.Column = "text",
    id_column: o.IdColumn = "id",
    dimensions: o.Dimensions = None,
    dtype: o.Type = "float32",
    input_type: o.Role = "document",
    cache: o.CacheOption = None,
    no_cache: o.NoCache = False,
    base_url: o.BaseUrl = None,
    budget_usd: o.Budget = None,
    price: o.Price = None,
    max_concurrency: o.Concurrency = 16,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Embed texts into a file. Says what it costs and asks first; run again after a stop, it pays only for the rest.

    Example: `rag-embedkit embed docs/ -o vectors.parquet -m openai:text-embedding-3-small`
    """
    with (
        RecordSource(inputs, column, id_column, output=output) as source,
        o.make(
            model,
            dimensions,
            dtype,
            cache=cache,
            no_cache=no_cache,
            base_url=base_url,
            budget_usd=budget_usd,
            price=price,
            max_concurrency=max_concurrency,
        ) as embedder,
        Output(output) as file,
    ):
        embed_all(embedder, source, file, role(input_type), yes=yes, quiet=quiet)
        usage, rows = embedder.usage, file.rows
    show(f"{output}: {rows:,} rows; {usage}", {"output": output, "rows": rows, **usage.to_dict()}, as_json=as_json)


@app.command()
def estimate(
    inputs: o.Inputs,
    model: o.Model,
    column: o.Column = "text",
    dimensions: o.Dimensions = None,
    dtype: o.Type = "float32",
    input_type: o.Role = "document",
    cache: o.CacheOption = None,
    no_cache: o.NoCache = False,
    base_url: o.BaseUrl = None,
    price: o.Price = None,
    as_json: o.Json = False,
) -> None:
    """Say what embedding texts would take: hits, tokens, dollars, requests, seconds. Sends nothing."""
    with (
        RecordSource(inputs, column, "id") as source,
        o.make(
            model, dimensions, dtype, cache=cache, no_cache=no_cache, base_url=base_url, price=price, sends=False
        ) as embedder,
    ):
        told = embedder.estimate(source.texts(), input_type=role(input_type))
    text = f"{told.model}: {told}\ntokens: {told.token_source}; price: {told.price_source}"
    show(text, told.to_dict(), as_json=as_json)


@app.command()
def models(
    provider: Annotated[str | None, typer.Argument(help="Only those of one provider.")] = None,
    as_json: o.Json = False,
) -> None:
    """List the models that are known: dimensions, limits, types, prices."""
    rows = [m for m in catalogue_models() if provider in (None, m.provider)]
    listed: list[dict[str, Any]] = [
        {
            "model": f"{m.provider}:{m.name}",
            "dimensions": m.dimensions,
            "text_tokens": m.limits.text_tokens,
            "dtypes": list(m.dtypes),
            "usd_per_million": None if m.usd_per_million is None else str(m.usd_per_million),
            "status": m.status,
        }
        for m in rows
    ]
    columns = ("model", "dimensions", "text_tokens", "usd_per_million", "status")
    cells = [[str("?" if row[name] is None else row[name]) for name in columns] for row in listed]
    text = table(["model", "dimensions", "tokens a text", "USD a million", "status"], cells)
    show(text if rows else f"no model of {provider!r} is known", listed, as_json=as_json)


@app.command()
def explain(
    text: Annotated[str, typer.Argument(help="A text.")],
    model: o.Model,
    dimensions: o.Dimensions = None,
    dtype: o.Type = "float32",
    input_type: o.Role = "document",
    cache: o.CacheOption = None,
    base_url: o.BaseUrl = None,
    as_json: o.Json = False,
) -> None:
    """Say what would be sent for a text, what its key covers and where its vector would come from. Sends nothing."""
    with o.make(model, dimensions, dtype, cache=cache, base_url=base_url, sends=False) as embedder:
        told = embedder.explain(text, input_type=role(input_type))
    data: dict[str, Any] = {
        "model": told.model,
        "endpoint": told.endpoint,
        "request_body": dict(told.request_body),
        "key": told.key,
        "key_parts": dict(told.key_parts),
        "served_from": told.served_from,
        "estimated_tokens": told.estimated_tokens,
        "usd_per_million": None if told.usd_per_million is None else str(told.usd_per_million),
        "price_source": told.price_source,
    }
    show("\n".join(f"{name}: {value}" for name, value in data.items()), data, as_json=as_json)


def embed_all(
    embedder: Embedder, source: RecordSource, file: Output | None, input_type: InputType, *, yes: bool, quiet: bool
) -> None:
    """Embed all that a source holds into a file, or into the cache alone; say what it costs and ask first."""
    told = embedder.estimate(source.texts(), input_type=input_type)
    if not quiet:
        err.print(f"{embedder.model}: {told}")
    if told.cost_usd is None or told.cost_usd > 0:
        confirm(f"send {count_noun(told.texts_to_send, 'text')} for {about(told.cost_usd)}?", yes=yes)
    n, progress = told.texts, not quiet
    ahead, behind = itertools.tee(source.records())
    texts: Iterator[str] = (record.text for record in ahead)
    shown = _Known(texts, n) if progress and sys.stderr.isatty() else texts
    rows = embedder.embed_iter(shown, input_type=input_type, progress=isinstance(shown, _Known))
    records: Iterator[Record] = behind
    try:
        for record, row in zip(records, rows, strict=True):
            if file is not None:
                file.add(record, row)
    except (PartialFailureError, BadTextError, TextTooLongError) as error:
        raise _placed(error, embedder, source) from None


def _placed(error: EmbedKitError, embedder: Embedder, source: RecordSource) -> EmbedKitError:
    """Give the error of a text with the file and the line it is in, rather than its position."""
    position, cause = next(iter(error.failed.items())) if isinstance(error, PartialFailureError) else (0, error)
    record = next(itertools.islice(source.records(), position, None))
    rerun = ". What is done is in the cache: a rerun sends only the rest" if embedder.tiered_cache.backend else ""
    error.args = (f"{record.place}: {str(cause).rstrip('.')}{rerun}",)
    return error


class _Known:
    """A stream whose length is known, for the bar."""

    def __init__(self, texts: Iterator[str], n: int) -> None:
        self._texts, self._n = texts, n

    def __iter__(self) -> Iterator[str]:
        return self._texts

    def __len__(self) -> int:
        return self._n


def role(value: str) -> InputType:
    """Give an input type as the embedder takes it, which refuses what is none."""
    return value  # type: ignore[return-value]
