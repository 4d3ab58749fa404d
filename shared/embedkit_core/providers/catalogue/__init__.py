"""Catalogue of models: dimensions, limits and prices, with their sources."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import ModelInfo
from embedkit_core.providers.catalogue.rows import merge_fields, not_a_mapping, unknown_model

FILE_VARIABLE = "RAG_EMBEDKIT_MODELS"
MAX_FILE_BYTES = 10_000_000  # of the user's file
MIN_SIMILARITY = 0.87  # difflib ratio from which a name counts as misspelled
SEPARATORS = re.compile(r"[-_./: ]+")


class ModelTuple(tuple[ModelInfo, ...]):
    """A tuple of models that notebooks show as a table, with a row for each model."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        from embedkit_core.common.html_tables import format_value, html_table  # only notebooks need it

        head = ["model", "dimensions", "max tokens", "USD per 1M tokens", "status"]
        values = [
            (f"{row.provider}:{row.name}", row.dimensions, row.limits.text_tokens, row.usd_per_million, row.status)
            for row in self
        ]
        return html_table(head, [[*map(format_value, line)] for line in values], (1, 2, 3))


def models(provider: str | None = None, *, status: str | None = None, name: str | None = None) -> tuple[ModelInfo, ...]:
    """Return the models of the catalogue that match all arguments, those of the user's file first.

    Models that are not in the catalogue can be used too; pass their facts as `model_info`.

    Args:
        provider: Name of the provider.
        status: "current", "legacy" or "retired".
        name: Model name without the provider prefix.

    Raises:
        ConfigurationError: No model has the provider or status, or the file named by RAG_EMBEDKIT_MODELS is invalid.

    Example:
        ```python
        from embedkit_core import models

        [row] = models("openai", name="text-embedding-3-small")
        ```
    """
    filters = {"provider": provider, "status": status, "name": name}
    for field, value in (("provider", provider), ("status", status)):
        known = {getattr(row, field) for row in rows()}
        if value is not None and value not in known:
            from embedkit_core.common.foreign_names import provider_meant  # only errors need it

            meant = provider_meant(value, known) if field == "provider" else None
            hint = f"did you mean {meant!r}?" if meant else suggest(value, known) or f"use {', '.join(sorted(known))}"
            raise ConfigurationError(f"{field}: no model in the catalogue has the {field} {value!r:.60}; {hint}")
    used = {field: value for field, value in filters.items() if value is not None}
    return ModelTuple(row for row in rows() if all(getattr(row, field) == value for field, value in used.items()))


def rows() -> tuple[ModelInfo, ...]:
    """Return all rows: those of the user's file, then the built-in ones that it does not replace."""
    file = os.environ.get(FILE_VARIABLE)
    return _rows_with_file(file) if file else tuple(_builtin_rows())


@cache
def _builtin_by_provider() -> Mapping[str, list[dict[str, Any]]]:
    """Return the built-in rows as in the file. Only those of the providers in use are parsed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(Path(__file__).with_name("models.json").read_text(encoding="utf-8"))["models"]:
        found.setdefault(row["provider"], []).append(row)
    return found


@cache
def _builtin_rows_of(provider: str) -> Mapping[str, ModelInfo]:
    """Return the built-in rows of a provider by name."""
    found = {}
    for raw in _builtin_by_provider().get(provider, ()):
        fields = {field: value for field, value in raw.items() if field not in ("provider", "name")}
        name = raw["name"]
        like = replace(_apply_like(unknown_model(provider, name), fields, "the catalogue"), provider=provider)
        found[name] = merge_fields(like, fields, f"the catalogue, model {provider}:{name}")
    return found


def _builtin_rows() -> Iterator[ModelInfo]:
    for provider in _builtin_by_provider():
        yield from _builtin_rows_of(provider).values()


@cache
def _user_rows(file: str) -> Mapping[tuple[str, str], tuple[ModelInfo, Mapping[str, Any]]]:
    """Return the rows of the user's file and the fields that they set. It is read once per process."""
    return {
        (row.provider, row.name): (row, fields)
        for row, fields in _parse_rows(_load_file(file), f"{FILE_VARIABLE}={file}")
    }


@cache
def _rows_with_file(file: str) -> tuple[ModelInfo, ...]:
    """Return all rows: those of the user's file, then the built-in ones that it does not replace."""
    user = _user_rows(file)
    builtin = (row for row in _builtin_rows() if (row.provider, row.name) not in user)
    return (*(row for row, _ in user.values()), *builtin)


def _load_file(file: str) -> list[Any]:
    flaw = ""
    try:
        path = Path(file).expanduser()
        if path.stat().st_size > MAX_FILE_BYTES:
            flaw = f"it is larger than {MAX_FILE_BYTES:,} bytes"
        else:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and isinstance(content.get("models"), list):
                return list(content["models"])
            flaw = 'it is not an object such as {"models": [{"provider": "openai", "name": "...", ...}]}'
    except OSError as error:
        flaw = type(error).__name__
    except (ValueError, RecursionError):
        flaw = "it is not valid JSON"
    raise ConfigurationError(f"{FILE_VARIABLE}: the file {file} cannot be used: {flaw}")


def _parse_rows(raw: Sequence[Any], where: str) -> Iterator[tuple[ModelInfo, Mapping[str, Any]]]:
    for position, raw_row in enumerate(raw):
        fields = dict(raw_row) if isinstance(raw_row, dict) else {}
        provider, name = fields.pop("provider", None), fields.pop("name", None)
        if not isinstance(provider, str) or not isinstance(name, str):
            raise ConfigurationError(f"{where}, model {position + 1}: provider and name are required")
        where_row, rest = f"{where}, model {provider}:{name}", dict(fields)
        base = _builtin_rows_of(provider).get(name) or unknown_model(provider, name)
        row = _apply_like(base, rest, where_row)
        row = row if row.provider == provider else replace(_elsewhere(row, base), provider=provider)
        yield merge_fields(row, rest, where_row), fields


def _apply_like(base: ModelInfo, fields: dict[str, Any], where: str) -> ModelInfo:
    """Remove `like` from `fields` and return the built-in row that it names, with the name of `base`."""
    like = fields.pop("like", None)
    if like is None:
        return base
    provider, _, name = like.partition(":") if isinstance(like, str) else ("", "", "")
    row = _builtin_rows_of(provider).get(name)
    if row is None:
        hint = suggest_model(name or like, among=tuple(_builtin_rows())) if isinstance(like, str) else ""
        hint = hint or "use provider:model from embedkit_core.models()"
        raise ConfigurationError(f"{where}: like must name a model in the catalogue (got {like!r:.80}); {hint}")
    return replace(row, name=base.name)


def _elsewhere(row: ModelInfo, default: ModelInfo) -> ModelInfo:
    """Return a row as that of another provider: without its price, and with the limits of a request of `default`."""
    limits = replace(default.limits, text_tokens=row.limits.text_tokens)
    unit_length = default.unit_length if row.unit_length is None else row.unit_length
    return replace(row, limits=limits, usd_per_million=None, usd_per_million_batch=None, unit_length=unit_length)


def find(name: str, provider: str | None = None) -> ModelInfo | None:
    """Return the row of a model, of any provider if `provider` is None."""
    if not os.environ.get(FILE_VARIABLE):
        providers = _builtin_by_provider() if provider is None else (provider,)
        return next((row for one in providers if (row := _builtin_rows_of(one).get(name))), None)
    return next((row for row in rows() if row.name == name and provider in (None, row.provider)), None)


def is_listed(provider: str, name: str) -> bool:
    """Return True if a model has a built-in row."""
    return name in _builtin_rows_of(provider)


def providers_of(name: str) -> list[str]:
    """Return the providers with a row of a model."""
    if not os.environ.get(FILE_VARIABLE):
        return [one for one, found in _builtin_by_provider().items() if any(row["name"] == name for row in found)]
    return [row.provider for row in rows() if row.name == name]


def providers_of_owner(owner: str) -> set[str]:
    """Return the providers with models whose names begin with an owner of the Hugging Face hub."""
    return {row.provider for row in rows() if row.name.startswith(f"{owner}/")}


def find_for(
    name: str, providers: Sequence[str], model_info: Mapping[str, Any] | None, default: ModelInfo
) -> ModelInfo | None:
    """Return the row of a model with the user's `model_info` applied, None if there is neither.

    Args:
        name: Model name without the provider prefix.
        providers: Providers whose rows apply, in order. If the row is not of the first one, its price is removed and
            its request limits are those of `default`.
        model_info: Fields that the user overrides.
        default: Row of a model that is not in the catalogue.

    Raises:
        ConfigurationError: `model_info` is invalid.
    """
    if model_info is not None and not isinstance(model_info, Mapping):
        raise not_a_mapping("model_info", model_info)
    known = next((row for provider in providers if (row := find(name, provider))), None)
    if model_info is None and known is None:
        return None
    base, fields = known or default, dict(model_info or {})
    if (described := _described_fields(providers[0], name)) is not None:
        base, fields = replace(default, provider=providers[0]), {**described, **fields}
    base = _apply_like(base, fields, "model_info")
    if base.provider != providers[0]:
        base = _elsewhere(base, default)
    row = merge_fields(base, fields, "model_info")
    if known is not None and known.dimensions and "like" not in (model_info or {}):
        _check_default_dimensions(known, row)
    return row


def _described_fields(provider: str, name: str) -> Mapping[str, Any] | None:
    """Return what the user's file says about a model without a built-in row; all else is as the provider assumes."""
    file = os.environ.get(FILE_VARIABLE)
    found = _user_rows(file).get((provider, name)) if file and not is_listed(provider, name) else None
    return None if found is None else found[1]


def _check_default_dimensions(known: ModelInfo, row: ModelInfo) -> None:
    """Reject other default dimensions for a known model, because they would not be sent to the provider."""
    if row.dimensions != known.dimensions:
        raise ConfigurationError(
            f"model_info: the default dimensions of {known.name} are {known.dimensions} (got {row.dimensions}). "
            "Request other dimensions with dimensions=."
        )


def suggest_model(name: str, provider: str | None = None, *, among: tuple[ModelInfo, ...] | None = None) -> str:
    """Return "did you mean 'provider:model'?" if `name` is close to a model of the catalogue, else "".

    A name that differs in a number is not close, because it may be a model newer than the catalogue. A name without its
    owner is, if `provider` is given.
    """
    normalized, numbers = _normalized_name(name), _numbers(name)
    names = {
        _normalized_name(row.name): f"{row.provider}:{row.name}"
        for row in reversed(rows() if among is None else among)
        if provider in (None, row.provider) and _numbers(row.name) == numbers
    }
    of_owners = [one for one in names.values() if provider and one.lower().endswith(f"/{name.strip().lower()}")]
    if of_owners:
        return f"did you mean {of_owners[0]!r}?"
    return suggest(normalized, names, cutoff=MIN_SIMILARITY)


def _numbers(name: str) -> list[str]:
    """Return the numbers in a name; 4.0 counts as 4."""
    return re.findall(r"\d+", re.sub(r"(?<=\d)[.:-]0(?!\d)", "", name))


def _normalized_name(name: str) -> str:
    return SEPARATORS.sub("-", name.strip().lower())
