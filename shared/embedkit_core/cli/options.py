"""Options shared by the commands, each defined once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypedDict, TypeVar, get_args, get_type_hints

import typer

from embedkit_core.cache.urls import scheme_of
from embedkit_core.cli.reading import DEFAULT_ID_COLUMN, RecordSource
from embedkit_core.cli.splitting import PER
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import EmptyText, InputType, LongText, Task
from embedkit_core.common.vectors import DType
from embedkit_core.config.base import parameter_defaults
from embedkit_core.config.coordination import REDIS_SCHEMES
from embedkit_core.embedder import Embedder
from embedkit_core.providers.catalogue import models

_Command = TypeVar("_Command", bound=Callable[..., None])
NO_KEY = "nothing-is-sent"  # API key of embedders that send nothing
DEFAULTS: dict[str, Any] = {
    **parameter_defaults(),
    "model": inspect.Parameter.empty,
    "input_type": "document",
    "column": "text",
    "id_column": DEFAULT_ID_COLUMN,
    "per": None,
    "skip_empty": False,
    "no_cache": False,
    "price": None,
}


def integer(help_text: str, **more: Any) -> Any:
    """Return an option for a whole number."""
    return typer.Option(parser=_whole_number, metavar="INTEGER", help=help_text, **more)


def number(help_text: str, **more: Any) -> Any:
    """Return an option for a number."""
    return typer.Option(parser=_number, metavar="NUMBER", help=help_text, **more)


def choice(names: Sequence[str], help_text: str, **more: Any) -> Any:
    """Return an option with one of some values, which a shell completes. The library checks the value."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return typer.Option(metavar="NAME", autocompletion=complete, help=f"{help_text}: {', '.join(names)}.", **more)


def complete_model(incomplete: str) -> list[str]:
    """Return the models of the catalogue that begin with `incomplete`."""
    names = (f"{model.provider}:{model.name}" for model in models())
    return [name for name in names if name.startswith(incomplete)]


def _whole_number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number (got {value!r:.80}).") from None


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"must be a number (got {value!r:.80}).") from None


def _check_coordination(value: str | None) -> str | None:
    if value is not None and scheme_of(value) not in REDIS_SCHEMES:
        raise ConfigurationError("--coordination: must be an address. Use redis://host:6379/0, or rediss:// for TLS.")
    return value


def model_option(help_text: str) -> Any:
    """Return the option for a model of the catalogue."""
    return typer.Option("--model", "-m", autocompletion=complete_model, help=help_text, rich_help_panel=_MODEL)


_DEFAULT_CACHE = "RAG_EMBEDKIT_CACHE or the user's cache folder"
_INPUT, _MODEL, _REQUESTS, _BUDGET, _CACHE = "Inputs", "Model", "Requests", "Budget", "Cache"

Inputs = Annotated[
    list[str], typer.Argument(help="Files (.txt, .md, .jsonl, .csv, .parquet), folders, or - for stdin.")
]
IdColumn = Annotated[
    str, typer.Option(help="Column of the ids; the line number is the default id.", rich_help_panel=_INPUT)
]
Dimensions = Annotated[
    int | None, integer("Number of dimensions; the model's default if omitted.", rich_help_panel=_MODEL)
]
DTypeOption = Annotated[str, choice(get_args(DType), "Type of the vectors", rich_help_panel=_MODEL)]
InputTypeOption = Annotated[str, choice(get_args(InputType), "Embed the texts as", rich_help_panel=_MODEL)]
TaskOption = Annotated[
    str | None, choice(get_args(Task), "Purpose of the vectors, if it is not retrieval", rich_help_panel=_MODEL)
]
LongTextOption = Annotated[
    str, choice(get_args(LongText), "What happens to texts above the model's limit", rich_help_panel=_MODEL)
]
OnEmptyText = Annotated[
    str,
    choice(
        get_args(EmptyText),
        "What happens to rows whose text is null, empty or only white space; a zero vector is not sent",
        rich_help_panel=_INPUT,
    ),
]
FolderOption = Annotated[
    str | None,
    typer.Option("--cache", help=f"Cache folder; {_DEFAULT_CACHE} if omitted.", rich_help_panel=_CACHE),
]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        help=f"Cache folder, or redis://host:6379/0; {_DEFAULT_CACHE} if omitted.",
        rich_help_panel=_CACHE,
    ),
]
CoordinationOption = Annotated[
    str | None,
    typer.Option(
        "--coordination",
        metavar="ADDRESS",
        help="Redis through which machines share limits and budgets: redis://host:6379/0. The cache if omitted.",
        callback=_check_coordination,
        rich_help_panel=_CACHE,
    ),
]
BaseUrl = Annotated[str | None, typer.Option(help="Base URL of a compatible server.", rich_help_panel=_REQUESTS)]
Concurrency = Annotated[int, integer("Maximum number of requests in flight.", rich_help_panel=_REQUESTS)]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Spend money without asking for confirmation.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress and estimates.")]
Wide = Annotated[bool, typer.Option("--wide", help="Show all columns on a narrow terminal.")]
Csv = Annotated[
    str | None,
    typer.Option("--csv", metavar="FILE", help="Write all numbers to a CSV file; - prints them in place of the table."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class InputSettings(TypedDict):
    """Options for reading texts."""

    column: Annotated[str, typer.Option(help="Column of the texts in JSONL, CSV and Parquet.", rich_help_panel=_INPUT)]
    per: Annotated[
        str | None,
        choice(
            PER,
            "What one text of .txt, .md and stdin is; by default a line of .txt and stdin, and a whole .md or file "
            "in a folder",
            rich_help_panel=_INPUT,
        ),
    ]
    skip_empty: Annotated[
        bool,
        typer.Option(
            "--skip-empty", help="Skip rows whose text is null, empty or only white space.", rich_help_panel=_INPUT
        ),
    ]


class ModelSettings(TypedDict):
    """Options for one model."""

    model: Annotated[str, model_option("The model, as in openai:text-embedding-3-small.")]
    dimensions: Dimensions
    dtype: DTypeOption


class VectorSettings(TypedDict):
    """Options that change vectors, apart from their size."""

    task: TaskOption
    on_long_text: LongTextOption


class PriceSettings(TypedDict):
    """The option for a price."""

    price: Annotated[
        str | None,
        typer.Option(metavar="USD", help="USD per million tokens; overrides the catalogue.", rich_help_panel=_BUDGET),
    ]


class ServerSettings(TypedDict):
    """Options for requests that change no vector."""

    base_url: BaseUrl
    timeout: Annotated[float | None, number("Seconds to wait for a reply.", rich_help_panel=_REQUESTS)]
    requests_per_minute: Annotated[
        int | None, integer("Maximum number of requests per minute.", rich_help_panel=_REQUESTS)
    ]
    tokens_per_minute: Annotated[int | None, integer("Maximum number of tokens per minute.", rich_help_panel=_REQUESTS)]


class SharedSettings(TypedDict):
    """Options for what processes share."""

    cache: CacheOption
    coordination: CoordinationOption


class BudgetSettings(TypedDict):
    """Options for a budget."""

    budget_usd: Annotated[str | None, typer.Option(metavar="USD", help="Maximum cost in USD.", rich_help_panel=_BUDGET)]
    budget_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Share the budget with all processes that use this name and this cache.",
            rich_help_panel=_BUDGET,
        ),
    ]


class NoCacheSettings(TypedDict):
    """The option for no cache."""

    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor write the cache.", rich_help_panel=_CACHE)
    ]


def with_settings(command: _Command) -> _Command:
    """Put the options of a command's `**settings: Unpack[...]` into its signature, from which typer reads them."""
    signature = inspect.signature(command, eval_str=True)
    *explicit, settings = signature.parameters.values()
    options = get_type_hints(get_args(settings.annotation)[0], include_extras=True)
    spelled_out = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=option, default=DEFAULTS.get(name))
        for name, option in options.items()
    ]
    command.__signature__ = signature.replace(parameters=[*explicit, *spelled_out])  # type: ignore[attr-defined]
    return command


def record_source(
    inputs: Sequence[str],
    settings: Mapping[str, Any],
    *,
    output: str | None = None,
) -> RecordSource:
    """Return the texts of a command.

    Raises:
        ConfigurationError: An input or an option is not valid.
    """
    keeps_empty = settings.get("on_empty_text") == "zero"
    if keeps_empty and settings["skip_empty"]:
        raise ConfigurationError("--skip-empty: contradicts --on-empty-text zero. Remove one of them.")
    return RecordSource(
        inputs,
        settings["column"],
        settings.get("id_column", DEFAULT_ID_COLUMN),
        output=output,
        per=settings["per"],
        skip_empty=settings["skip_empty"],
        keep_empty=keeps_empty,
    )


def make_embedder(settings: Mapping[str, Any], *, sends: bool = True) -> Embedder:
    """Create an embedder from the options of a command.

    Args:
        settings: The values of the options. Those that are no arguments of `Embedder` are ignored, except `no_cache`
            and `price`.
        sends: False for an embedder that only estimates, which needs no API key.

    Raises:
        ConfigurationError: An option is not valid, or two of them contradict each other.
    """
    arguments = {name: value for name, value in settings.items() if name in parameter_defaults()}
    if not sends:
        arguments["api_key"] = NO_KEY
    if settings.get("no_cache"):
        if arguments["cache"] is not None:
            raise ConfigurationError(
                f"--no-cache: contradicts --cache (got {arguments['cache']!r}). Remove one of them."
            )
        arguments["cache"] = False
    if (price := settings.get("price")) is not None:
        arguments["prices"] = model_prices(arguments["model"], price)
    return Embedder(**arguments)


def model_prices(model: str, price: str) -> dict[str, str]:
    """Return `prices=` of a model; its provider may have another name in the catalogue."""
    return {model: price, model.partition(":")[2] or model: price}


def as_input_type(value: str) -> InputType:
    """Return `value` typed as an input type; the embedder validates it."""
    return value  # type: ignore[return-value]
