"""Commands `cache stats`, `verify`, `clear`, `prune`, `export`, `import` and `warm`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Unpack

import typer

from embedkit_core.cache.maintenance import CacheFolder, CacheStats
from embedkit_core.cache.opening import CACHE_VARIABLE, cache_errors_name, environment_cache
from embedkit_core.cache.urls import open_url, scheme_of
from embedkit_core.cli import options as o
from embedkit_core.cli.console import FAILED, cache_app, confirm, err, format_price, show, table_width, wording
from embedkit_core.cli.embedding import embed_all
from embedkit_core.cli.jobs import check_no_open_jobs
from embedkit_core.cli.outputs import Outputs
from embedkit_core.common.errors import CacheError, ConfigurationError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.money import USD
from embedkit_core.common.types import Cache, InputType
from embedkit_core.common.validation import check_integer
from embedkit_core.embedder import Embedder
from embedkit_core.tools.tables import table, to_csv

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_OfModel = o.model_option("Only vectors of this model or vector space, as `cache stats` lists it.")
ConfirmDelete = Annotated[bool, typer.Option("--yes", "-y", help="Delete vectors without asking for confirmation.")]


@cache_app.command(name="stats")
def stats_command(
    cache: o.FolderOption = None, csv: o.Csv = None, wide: o.Wide = False, as_json: o.Json = False
) -> None:
    """Show the cached vectors by vector space, with their size and last use."""
    outputs = Outputs(csv, as_json=as_json)
    stats = _folder(cache).stats()
    where = f"{stats.folder} ({CACHE_VARIABLE})" if cache is None and environment_cache() else stats.folder
    text = f"{where}: {count_noun(stats.vectors, 'vector')}, {_size(stats.bytes_on_disk)}"
    cells = [
        [space.space or "unknown", f"{space.vectors:,}", _size(space.bytes), _date(space.last_used)]
        for space in stats.spaces
    ]
    if cells:
        text += "\n" + table(["vector space", "vectors", "size", "last use"], cells, table_width(wide=wide))
    if not stats.quarantined or as_json:
        outputs.show(text, asdict(stats), to_csv([asdict(space) for space in stats.spaces]))
    stats.check()


class VerifySettings(o.InputSettings, o.VectorSettings, o.ServerSettings, o.SharedSettings):
    """Options of `cache verify`."""

    dimensions: o.Dimensions
    dtype: o.DTypeOption
    input_type: o.InputTypeOption


@cache_app.command()
@o.with_settings
def verify(
    inputs: Annotated[list[str] | None, typer.Argument(help="With --live: the cached texts.")] = None,
    live: Annotated[int, o.integer("Embed this many cached texts again and compare.")] = 0,
    model: Annotated[str | None, o.model_option("With --live: the model, as provider:model.")] = None,
    yes: o.Yes = False,
    as_json: o.Json = False,
    **settings: Unpack[VerifySettings],
) -> None:
    """Check every vector against its checksum; with --live, compare some with current vectors of the model."""
    check_integer("--live", live, 0)
    if live:
        if not inputs or model is None:
            raise ConfigurationError("--live: requires --model and the texts, since the cache does not store texts.")
        input_type = o.as_input_type(settings["input_type"])
        with o.record_source(inputs, settings) as source, o.make_embedder({**settings, "model": model}) as embedder:
            texts = list(source.texts())
            _confirm_resend(embedder, texts, input_type, live, yes=yes)
            verification = embedder.verify_cache(texts, input_type=input_type, sample=live)
        show(wording(str(verification)), asdict(verification), as_json=as_json)
        return
    if inputs or model is not None:
        raise ConfigurationError("--live: is required to compare texts with a model. Add for example --live 20.")
    stats = _folder(settings["cache"]).verify()
    text = (
        f"{stats.folder}: {count_noun(stats.vectors, 'vector')}, {stats.damaged:,} damaged (embedded again on next use)"
    )
    if not stats.quarantined or as_json:
        show(text, asdict(stats), as_json=as_json)
    stats.check()
    if stats.damaged:
        raise typer.Exit(FAILED)


def _folder(path: str | None, option: str = "--cache") -> CacheFolder:
    """Return the cache at `path`, which must exist, or the user's own cache, which may not exist yet."""
    folder = opened(path, option)
    if path is not None and not folder.folder.is_dir():
        raise ConfigurationError(f"{option}: the folder does not exist (got {path!r}). Use the folder of a cache.")
    if path is not None and not folder.holds_cache:
        raise ConfigurationError(f"{option}: the folder contains no cache (got {path!r}). Use the folder of a cache.")
    return folder


def opened(path: str | None, option: str) -> CacheFolder:
    """Return the cache at `path`, which need not exist; an error names the option or argument of the path."""
    if scheme_of(path) is not None:
        raise ConfigurationError(f"{option}: this command needs a folder (got an address). Use the path of a folder.")
    with cache_errors_name(option):
        return CacheFolder(path)


def _target(name: str) -> CacheFolder | Cache:
    """Return the cache to copy to, in a folder or at an address."""
    if scheme_of(name) is None:
        return opened(name, "TARGET")
    with cache_errors_name("TARGET"):
        return open_url(name)


def _known_model(stats: CacheStats, model: str | None) -> str | None:
    """Return the model of `--model` as the cache knows it: some models share a vector space, or are in a folder.

    Raises:
        ConfigurationError: The cache has no vectors of the model.
    """
    if model is None:
        return None
    try:
        stats.of_model(model)
    except ConfigurationError as unknown:
        try:
            model = o.make_embedder({"model": model}, sends=False).vector_space.model
            stats.of_model(model)
        except ConfigurationError:
            raise ConfigurationError(f"--{unknown}") from None
    return model


def _parsed(option: str, value: str | None, pattern: str, example: str, unit: Callable[[str], float]) -> float | None:
    """Return the number of an option, such as 30d or 2GB, multiplied by its unit."""
    if value is None:
        return None
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*{pattern}", value.strip(), re.IGNORECASE)
    amount = 0.0 if match is None else float(match[1]) * unit(match[2].upper())
    if not 0 < amount < math.inf:
        raise ConfigurationError(f"{option}: must be a positive number, such as {example} (got {value!r:.50}).")
    return amount


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.0f} kB"


def _date(seconds: float | None) -> str:
    return "unknown" if seconds is None else datetime.fromtimestamp(seconds, UTC).date().isoformat()


def _confirm_resend(embedder: Embedder, texts: list[str], input_type: InputType, sample: int, *, yes: bool) -> None:
    """Ask for confirmation before cached texts are sent and billed again."""
    resent = min(sample, embedder.estimate(texts, input_type=input_type).cache_hits)
    cost_per_text = embedder.without_cache().estimate(texts, input_type=input_type).cost_per_text_usd
    cost = None if cost_per_text is None else USD.multiply(resent, cost_per_text)
    if resent and cost != 0:
        confirm(f"embed {count_noun(resent, 'cached text')} again for {format_price(cost)}?", yes=yes)


@cache_app.command()
def clear(
    model: Annotated[str | None, _OfModel] = None, cache: o.FolderOption = None, yes: ConfirmDelete = False
) -> None:
    """Delete all vectors, or those of a model; embedding their texts again is billed again."""
    folder = _folder(cache)
    check_no_open_jobs(folder.folder, cache)
    stats = folder.stats()
    stats.check()
    known = _known_model(stats, model)
    vectors, where = stats.vectors, stats.folder
    if known is not None:
        spaces = stats.of_model(known)
        vectors, where = sum(space.vectors for space in spaces.values()), f"{where} ({', '.join(spaces)})"
    confirm(f"delete {count_noun(vectors, 'vector')} in {where}?", yes=yes)
    err.print(f"{count_noun(folder.clear(model=known), 'vector')} deleted")


@cache_app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(help="Delete vectors that were not used for so many days, such as 90d.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Delete the least recently used vectors above this size, such as 2GB.")
    ] = None,
    cache: o.FolderOption = None,
    yes: ConfirmDelete = False,
) -> None:
    """Delete vectors that were not used for long, or that exceed a size; embedding their texts again is billed again.

    The last use is recorded to within 30 days: a vector is kept if it may have been used in the time.
    """
    if older_than is None and max_size is None:
        raise ConfigurationError("--older-than, --max-size: one of them is required, such as --older-than 90d.")
    days = _parsed("--older-than", older_than, "(d?)", "90d", lambda _: 1)
    size = _parsed("--max-size", max_size, "([KMGT]?)B?", "2GB", lambda prefix: _SIZES[prefix])
    folder = _folder(cache)
    stats = folder.stats()
    stats.check()
    limits = [] if days is None else [f"not used for {days:g} days"]
    limits += [] if size is None else [f"above {_size(math.ceil(size))}"]
    confirm(f"delete vectors {' and '.join(limits)} of {stats.vectors:,} in {stats.folder}?", yes=yes)
    deleted = folder.prune(unused_days=days, max_bytes=None if size is None else math.ceil(size))
    stats = folder.stats()
    left = f"{count_noun(stats.vectors, 'vector')}, {_size(stats.bytes_on_disk)}"
    err.print(f"{count_noun(deleted, 'vector')} deleted; {left} left")


@cache_app.command(name="export")
def export_command(
    target: Annotated[str, typer.Argument(help="The new cache folder, or redis://host:6379/0.")],
    model: Annotated[str | None, _OfModel] = None,
    cache: o.FolderOption = None,
) -> None:
    """Copy all vectors, or those of a model, to another cache folder or an address, for example for other machines."""
    folder = _folder(cache)
    known = None
    if model is not None:
        stats = folder.stats()
        stats.check()
        known = _known_model(stats, model)
    copied = folder.copy_to(_target(target), model=known)
    err.print(f"{count_noun(copied, 'vector')} copied to {target}")


@cache_app.command(name="import")
def import_command(
    source: Annotated[str, typer.Argument(help="The cache folder to copy from.")], cache: o.FolderOption = None
) -> None:
    """Copy all vectors from another cache folder into this one."""
    copied = _folder(source, "SOURCE").copy_to(opened(cache, "--cache"))
    err.print(f"{count_noun(copied, 'vector')} copied from {source}")


class WarmSettings(
    o.InputSettings,
    o.ModelSettings,
    o.VectorSettings,
    o.ServerSettings,
    o.SharedSettings,
    o.BudgetSettings,
    o.PriceSettings,
):
    """Options of `cache warm`."""

    input_type: o.InputTypeOption
    max_concurrency: o.Concurrency


@cache_app.command()
@o.with_settings
def warm(
    inputs: o.Inputs,
    yes: o.Yes = False,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
    **settings: Unpack[WarmSettings],
) -> None:
    """Embed texts into the cache only, without an output file."""
    input_type = o.as_input_type(settings["input_type"])
    with o.record_source(inputs, settings) as source, o.make_embedder(settings) as embedder:
        before = _write_failures(embedder)
        embed_all(embedder, source, None, input_type, yes=yes, quiet=quiet)
        usage, lost = embedder.usage, _write_failures(embedder) - before
    show(str(usage), usage.to_dict(), as_json=as_json)
    if lost:
        raise CacheError(
            f"{count_noun(lost, 'vector')} could not be written to the cache; the log has the reason. Use a --cache "
            "that is writable and has free space, and run the command again."
        )


def _write_failures(embedder: Embedder) -> int:
    return sum(cache.write_failures for cache in embedder.vector_cache.tiers)
