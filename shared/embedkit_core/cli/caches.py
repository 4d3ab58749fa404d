"""Commands `cache stats`, `verify`, `clear`, `export`, `import` and `warm`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from embedkit_core.cache.maintenance import CacheFolder, CacheStats
from embedkit_core.cli import options as o
from embedkit_core.cli.console import FAILED, cache_app, confirm, err, format_price, show, wording
from embedkit_core.cli.embedding import embed_all
from embedkit_core.cli.reading import RecordSource
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.usage import USD
from embedkit_core.common.validation import check_integer
from embedkit_core.embedder import Embedder

ConfirmDelete = Annotated[bool, typer.Option("--yes", "-y", help="Delete vectors without asking for confirmation.")]


@cache_app.command(name="stats")
def stats_command(cache: o.CacheOption = None, as_json: o.Json = False) -> None:
    """Show the number of cached vectors and their size on disk."""
    stats = _folder(cache).stats()
    text = f"{stats.folder}: {count_noun(stats.vectors, 'vector')}, {stats.bytes_on_disk / 1e6:,.1f} MB"
    _show_stats(text, stats, as_json=as_json)


@cache_app.command()
def verify(
    inputs: Annotated[list[str] | None, typer.Argument(help="With --live: the cached texts.")] = None,
    live: Annotated[int, o.integer("Embed this many cached texts again and compare.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="With --live: the model, as provider:model.")
    ] = None,
    column: o.Column = "text",
    skip_empty: o.SkipEmpty = False,
    dimensions: o.Dimensions = None,
    base_url: o.BaseUrl = None,
    cache: o.CacheOption = None,
    yes: o.Yes = False,
    as_json: o.Json = False,
) -> None:
    """Check every vector against its checksum; with --live, compare some with current vectors of the model."""
    check_integer("--live", live, 0)
    if live:
        if not inputs or model is None:
            raise ConfigurationError("--live: requires --model and the texts, since the cache does not store texts.")
        with (
            RecordSource(inputs, column, "id", skip_empty=skip_empty) as source,
            o.make_embedder(model, dimensions, "float32", cache=cache, base_url=base_url) as embedder,
        ):
            texts = list(source.texts())
            _confirm_resend(embedder, texts, live, yes=yes)
            verification = embedder.verify_cache(texts, sample=live)
        show(wording(str(verification)), asdict(verification), as_json=as_json)
        return
    stats = _folder(cache).verify()
    text = (
        f"{stats.folder}: {count_noun(stats.vectors, 'vector')}, {stats.damaged:,} damaged "
        "(embedded again on their next use)"
    )
    _show_stats(text, stats, as_json=as_json)


def _show_stats(text: str, stats: CacheStats, *, as_json: bool) -> None:
    """Print the state of a cache; exit with FAILED if it is damaged."""
    quarantined = (
        f"{stats.folder}: the database was damaged or of an unknown format and was quarantined. "
        "Its vectors must be embedded again."
    )
    show(quarantined if stats.quarantined else text, asdict(stats), as_json=as_json)
    if stats.damaged or stats.quarantined:
        raise typer.Exit(FAILED)


def _folder(path: str | None) -> CacheFolder:
    """Return the cache at `path`, which must exist, or the user's own cache, which may not exist yet."""
    folder = CacheFolder(path)
    if path is not None and not folder.folder.is_dir():
        raise ConfigurationError(f"Cache folder {path!r} does not exist.")
    if path is not None and not folder.holds_cache:
        raise ConfigurationError(f"Folder {path!r} contains no cache. Use the folder that is passed as --cache.")
    return folder


def _confirm_resend(embedder: Embedder, texts: list[str], sample: int, *, yes: bool) -> None:
    """Ask for confirmation before cached texts are sent and billed again."""
    resent = min(sample, embedder.estimate(texts).cache_hits)
    cost_per_text = embedder.without_cache().estimate(texts).cost_per_text_usd
    cost = None if cost_per_text is None else USD.multiply(resent, cost_per_text)
    if resent and cost != 0:
        confirm(f"embed {count_noun(resent, 'cached text')} again for {format_price(cost)}?", yes=yes)


@cache_app.command()
def clear(cache: o.CacheOption = None, yes: ConfirmDelete = False) -> None:
    """Delete all vectors; embedding their texts again is billed again."""
    folder = _folder(cache)
    stats = folder.stats()
    confirm(f"delete {count_noun(stats.vectors, 'vector')} in {stats.folder}?", yes=yes)
    err.print(f"{count_noun(folder.clear(), 'vector')} deleted")


@cache_app.command(name="export")
def export_command(
    target: Annotated[str, typer.Argument(help="The new cache folder.")], cache: o.CacheOption = None
) -> None:
    """Copy all vectors to another cache folder, for example to move them to another machine."""
    err.print(f"{_folder(cache).copy_to(CacheFolder(target)):,} vectors copied to {target}")


@cache_app.command(name="import")
def import_command(
    source: Annotated[str, typer.Argument(help="The cache folder to copy from.")], cache: o.CacheOption = None
) -> None:
    """Copy all vectors from another cache folder into this one."""
    err.print(f"{_folder(source).copy_to(CacheFolder(cache)):,} vectors copied from {source}")


@cache_app.command()
def warm(
    inputs: o.Inputs,
    model: o.Model,
    column: o.Column = "text",
    skip_empty: o.SkipEmpty = False,
    dimensions: o.Dimensions = None,
    dtype: o.DTypeOption = "float32",
    input_type: o.InputTypeOption = "document",
    cache: o.CacheOption = None,
    base_url: o.BaseUrl = None,
    budget_usd: o.BudgetOption = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Embed texts into the cache only, without an output file."""
    with (
        RecordSource(inputs, column, "id", skip_empty=skip_empty) as source,
        o.make_embedder(model, dimensions, dtype, cache=cache, base_url=base_url, budget_usd=budget_usd) as embedder,
    ):
        embed_all(embedder, source, None, o.as_input_type(input_type), yes=yes, quiet=quiet)
        usage = embedder.usage
    show(str(usage), usage.to_dict(), as_json=as_json)
