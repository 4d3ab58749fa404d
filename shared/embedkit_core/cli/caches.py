"""cache stats, verify, clear, export, import, warm."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from embedkit_core.cache.maintenance import CacheFolder, CacheStats
from embedkit_core.cli import options as o
from embedkit_core.cli.console import FAILED, about, cache_app, confirm, err, show
from embedkit_core.cli.embedding import embed_all, role
from embedkit_core.cli.reading import RecordSource
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import count_noun
from embedkit_core.embedder import Embedder

Folder = Annotated[str | None, typer.Option("--cache", help="A folder; the user's cache folder by default.")]

Sure = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before vectors are deleted.")]


@cache_app.command()
def stats(cache: Folder = None, as_json: o.Json = False) -> None:
    """Say how much is in the cache."""
    found = _folder(cache).stats()
    text = f"{found.folder}: {found.vectors:,} vectors, {found.bytes_on_disk / 1e6:,.1f} MB"
    _tell(text, found, as_json=as_json)


@cache_app.command()
def verify(
    inputs: Annotated[list[str] | None, typer.Argument(help="With --live: texts that are cached.")] = None,
    live: Annotated[int, typer.Option(min=0, help="Embed so many cached texts again, and compare.")] = 0,
    model: Annotated[str | None, typer.Option("--model", "-m", help="With --live: provider:model.")] = None,
    column: o.Column = "text",
    dimensions: o.Dimensions = None,
    base_url: o.BaseUrl = None,
    cache: Folder = None,
    yes: o.Yes = False,
    as_json: o.Json = False,
) -> None:
    """Check every vector against its checksum; with --live, some against what the model gives today."""
    if live:
        if not inputs or model is None:
            raise ConfigurationError("--live needs --model and the texts, since the cache holds none")
        with (
            RecordSource(inputs, column, "id") as source,
            o.make(model, dimensions, "float32", cache=cache, base_url=base_url) as embedder,
        ):
            texts = list(source.texts())
            _ask(embedder, texts, live, yes=yes)
            found = embedder.verify_cache(texts, sample=live)
        show(str(found), asdict(found), as_json=as_json)
        return
    whole = _folder(cache).verify()
    text = f"{whole.folder}: {whole.vectors:,} vectors, {whole.damaged:,} of them damaged (embedded again when wanted)"
    _tell(text, whole, as_json=as_json)


def _tell(text: str, found: CacheStats, *, as_json: bool) -> None:
    """Print what a cache holds; one with damage is a failure."""
    aside = f"{found.folder}: its database was damaged, or not ours, and was set aside; what it held is paid for again"
    show(aside if found.quarantined else text, asdict(found), as_json=as_json)
    if found.damaged or found.quarantined:
        raise typer.Exit(FAILED)


def _folder(named: str | None) -> CacheFolder:
    """Give the cache in a folder that is named, which has to be there, or the user's own, which need not be yet."""
    folder = CacheFolder(named)
    if named is not None and not folder.folder.is_dir():
        raise ConfigurationError(f"there is no folder {named!r}")
    if named is not None and not folder.holds_cache:
        raise ConfigurationError(f"the folder {named!r} holds no cache; name the one that cache= names")
    return folder


def _ask(embedder: Embedder, texts: list[str], sample: int, *, yes: bool) -> None:
    """Ask before cached texts are paid for once more."""
    again = min(sample, embedder.estimate(texts).cache_hits)
    each = embedder.without_cache().estimate(texts).cost_per_text_usd
    cost = None if each is None else again * each
    if again and cost != 0:
        confirm(f"embed {count_noun(again, 'cached text')} again for {about(cost)}?", yes=yes)


@cache_app.command()
def clear(cache: Folder = None, yes: Sure = False) -> None:
    """Delete every vector: what they cost will be paid again."""
    folder = _folder(cache)
    found = folder.stats()
    confirm(f"delete {found.vectors:,} vectors in {found.folder}?", yes=yes)
    err.print(f"{folder.clear():,} vectors deleted")


@cache_app.command(name="export")
def export_command(
    target: Annotated[str, typer.Argument(help="A folder, which becomes a cache.")], cache: Folder = None
) -> None:
    """Copy all vectors into another cache folder, to be taken elsewhere."""
    err.print(f"{_folder(cache).copy_to(CacheFolder(target)):,} vectors copied to {target}")


@cache_app.command(name="import")
def import_command(source: Annotated[str, typer.Argument(help="A cache folder.")], cache: Folder = None) -> None:
    """Copy all vectors of another cache folder into this one."""
    err.print(f"{_folder(source).copy_to(CacheFolder(cache)):,} vectors copied from {source}")


@cache_app.command()
def warm(
    inputs: o.Inputs,
    model: o.Model,
    column: o.Column = "text",
    dimensions: o.Dimensions = None,
    dtype: o.Type = "float32",
    input_type: o.Role = "document",
    cache: Folder = None,
    base_url: o.BaseUrl = None,
    budget_usd: o.Budget = None,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Embed texts into the cache, so that they are there when they are wanted."""
    with (
        RecordSource(inputs, column, "id") as source,
        o.make(model, dimensions, dtype, cache=cache, base_url=base_url, budget_usd=budget_usd) as embedder,
    ):
        embed_all(embedder, source, None, role(input_type), yes=yes, quiet=quiet)
        usage = embedder.usage
    show(str(usage), usage.to_dict(), as_json=as_json)
