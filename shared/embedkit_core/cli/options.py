"""Options shared by the commands."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import InputType
from embedkit_core.embedder import Embedder


def integer(help_text: str) -> Any:
    """Return an option for a whole number."""
    return typer.Option(parser=_whole_number, metavar="INTEGER", help=help_text)


def _whole_number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number (got {value!r:.80}).") from None


Model = Annotated[str, typer.Option("--model", "-m", help="The model, as in openai:text-embedding-3-small.")]
Inputs = Annotated[
    list[str], typer.Argument(help="Files (.txt, .md, .jsonl, .csv, .parquet), folders, or - for stdin.")
]
Column = Annotated[str, typer.Option(help="Column of the texts in JSONL, CSV and Parquet.")]
IdColumn = Annotated[str, typer.Option(help="Column of the ids; the line number is the default id.")]
SkipEmpty = Annotated[
    bool, typer.Option("--skip-empty", help="Skip rows whose text is null, empty or only white space.")
]
Dimensions = Annotated[
    int | None,
    integer("Number of dimensions; the model's default if omitted."),
]
DTypeOption = Annotated[
    str, typer.Option("--dtype", help="Type of the vectors: float32, float16, int8, uint8, binary or ubinary.")
]
_DEFAULT_CACHE = "RAG_EMBEDKIT_CACHE or the user's cache folder"
CacheOption = Annotated[
    str | None,
    typer.Option("--cache", help=f"Cache folder, or redis://host:6379/0; {_DEFAULT_CACHE} if omitted."),
]
FolderOption = Annotated[str | None, typer.Option("--cache", help=f"Cache folder; {_DEFAULT_CACHE} if omitted.")]
CoordinationOption = Annotated[
    str | None,
    typer.Option(
        "--coordination",
        metavar="ADDRESS",
        help="Redis through which machines share limits and budgets: redis://host:6379/0. The cache if omitted.",
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")]
BaseUrl = Annotated[str | None, typer.Option(help="Base URL of a compatible server.")]
InputTypeOption = Annotated[str, typer.Option("--input-type", help="Embed as document or query.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Spend money without asking for confirmation.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and estimates.")]
BudgetOption = Annotated[str | None, typer.Option(metavar="USD", help="Maximum cost in USD.")]
BudgetName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Share the budget with all processes that use this name and this cache."),
]
PriceOption = Annotated[
    str | None, typer.Option(metavar="USD", help="USD per million tokens; overrides the catalogue.")
]
Concurrency = Annotated[int, integer("Maximum number of requests in flight.")]

NO_KEY = "nothing-is-sent"  # API key of embedders that send nothing


def make_embedder(
    model: str,
    dimensions: int | None,
    dtype: str,
    *,
    cache: str | None,
    no_cache: bool = False,
    coordination: str | None = None,
    base_url: str | None,
    budget_usd: str | None = None,
    budget_name: str | None = None,
    price: str | None = None,
    max_concurrency: int = 16,
    sends: bool = True,
) -> Embedder:
    """Create an embedder from command line options.

    Args:
        sends: False for an embedder that only estimates, which needs no API key.

    Raises:
        ConfigurationError: An option is not valid, or two of them contradict each other.
    """
    if no_cache and cache is not None:
        raise ConfigurationError(f"--no-cache: contradicts --cache (got {cache!r}). Remove one of them.")
    return Embedder(
        model,
        api_key=None if sends else NO_KEY,
        dimensions=dimensions,
        dtype=dtype,  # type: ignore[arg-type]
        cache=False if no_cache else cache,
        coordination=coordination,
        base_url=base_url,
        budget_usd=budget_usd,
        budget_name=budget_name,
        prices=None if price is None else {model: price, model.partition(":")[2] or model: price},
        max_concurrency=max_concurrency,
    )


def as_input_type(value: str) -> InputType:
    """Return `value` typed as an input type; the embedder validates it."""
    return value  # type: ignore[return-value]
