"""Options that commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from embedkit_core.embedder import Embedder

Model = Annotated[str, typer.Option("--model", "-m", help="provider:model, as in openai:text-embedding-3-small.")]
Inputs = Annotated[list[str], typer.Argument(help="Files (.txt, .jsonl, .csv, .parquet), folders, or - for stdin.")]
Column = Annotated[str, typer.Option(help="Where the texts are, in JSONL, CSV and Parquet.")]
IdColumn = Annotated[str, typer.Option(help="Where the names of the texts are; else their line numbers.")]
Dimensions = Annotated[int | None, typer.Option(help="How many the vectors have; the model's own by default.")]
Type = Annotated[str, typer.Option("--dtype", help="float32, float16, int8, uint8, binary or ubinary.")]
CacheOption = Annotated[str | None, typer.Option("--cache", help="A folder; the user's cache folder by default.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither ask a cache nor keep anything.")]
BaseUrl = Annotated[str | None, typer.Option(help="The address of a compatible server.")]
Role = Annotated[str, typer.Option("--input-type", help="document or query.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before money is spent.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Budget = Annotated[float | None, typer.Option(help="USD that may be spent at most.")]
Price = Annotated[float | None, typer.Option(help="USD per million tokens, where the catalogue has none.")]
NO_KEY = "nothing-is-sent"
Concurrency = Annotated[int, typer.Option(help="Requests in flight at most.")]


def make(
    model: str,
    dimensions: int | None,
    dtype: str,
    *,
    cache: str | None,
    no_cache: bool = False,
    base_url: str | None,
    budget_usd: float | None = None,
    price: float | None = None,
    max_concurrency: int = 16,
    sends: bool = True,
) -> Embedder:
    """Make the embedder that options name; one that sends nothing needs no key."""
    return Embedder(
        model,
        api_key=None if sends else NO_KEY,
        dimensions=dimensions,
        dtype=dtype,  # type: ignore[arg-type]
        cache=False if no_cache else cache,
        base_url=base_url,
        budget_usd=budget_usd,
        prices=None if price is None else {model: price, model.partition(":")[2] or model: price},
        max_concurrency=max_concurrency,
    )
