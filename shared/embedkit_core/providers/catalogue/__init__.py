"""What is known of models: dimensions, limits and prices as data, with their sources."""

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
from embedkit_core.providers.catalogue.rows import merged, unknown

FILE_VARIABLE = "RAG_EMBEDKIT_MODELS"
LARGEST = 10_000_000  # bytes of a file of the user's
ALIKE = 0.87  # difflib's ratio, above which a name is a slip of another
SEPARATORS = re.compile(r"[-_./: ]+")


def models(provider: str | None = None, *, status: str | None = None, name: str | None = None) -> tuple[ModelInfo, ...]:
    """Give the models that the library knows, those of the user's file first; each argument leaves out others.

    Any other name works as well: these are the ones whose dimensions, limits and prices need not be given.

    Raises:
        ConfigurationError: no model has such a provider or status, or the file that RAG_EMBEDKIT_MODELS names is no
            list of models.
    """
    asked = {"provider": provider, "status": status, "name": name}
    for field, value in (("provider", provider), ("status", status)):
        known = {getattr(row, field) for row in rows()}
        if value is not None and value not in known:
            hint = suggest(value, known) or f"there are {', '.join(sorted(known))}"
            raise ConfigurationError(f"no model of the catalogue has the {field} {value!r:.60}; {hint}")
    wanted = {field: value for field, value in asked.items() if value is not None}
    return tuple(row for row in rows() if all(getattr(row, field) == value for field, value in wanted.items()))


def rows() -> tuple[ModelInfo, ...]:
    """Give every row: the user's own, which stand in place of ours of the same name, then ours."""
    file = os.environ.get(FILE_VARIABLE)
    return _with_file(file) if file else _ours()


@cache
def _ours() -> tuple[ModelInfo, ...]:
    text = Path(__file__).with_name("models.json").read_text(encoding="utf-8")
    return tuple(_read(json.loads(text)["models"], "the catalogue", {}))


@cache
def _with_file(file: str) -> tuple[ModelInfo, ...]:
    """Read the user's file, once a process."""
    ours = {(row.provider, row.name): row for row in _ours()}
    theirs = {(row.provider, row.name): row for row in _read(_listed(file), f"{FILE_VARIABLE}={file}", ours)}
    return tuple({**theirs, **{key: row for key, row in ours.items() if key not in theirs}}.values())


def _listed(file: str) -> list[Any]:
    flaw = ""
    try:
        path = Path(file).expanduser()
        if path.stat().st_size > LARGEST:
            flaw = f"it is larger than {LARGEST:,} bytes"
        else:
            found = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(found, dict) and isinstance(found.get("models"), list):
                return list(found["models"])
            flaw = 'it is no object such as {"models": [{"provider": "openai", "name": "...", ...}]}'
    except OSError as error:
        flaw = type(error).__name__
    except (ValueError, RecursionError):
        flaw = "it is no JSON"
    raise ConfigurationError(f"the file that {FILE_VARIABLE} names ({file}) cannot be used: {flaw}")


def _read(raw: Sequence[Any], where: str, known: Mapping[tuple[str, str], ModelInfo]) -> Iterator[ModelInfo]:
    for place, one in enumerate(raw):
        fields = dict(one) if isinstance(one, dict) else {}
        provider, name = fields.pop("provider", None), fields.pop("name", None)
        if not isinstance(provider, str) or not isinstance(name, str):
            raise ConfigurationError(f"{where}, model {place + 1}: give it a provider and a name")
        at = f"{where}, model {provider}:{name}"
        base = known.get((provider, name)) or unknown(provider, name)
        yield merged(_like(base, fields, at), fields, at)


def _like(base: ModelInfo, fields: dict[str, Any], where: str) -> ModelInfo:
    """Take out `like` and give the row with the facts of the model it names, under the name of its own."""
    like = fields.pop("like", None)
    if like is None:
        return base
    provider, _, name = like.partition(":") if isinstance(like, str) else ("", "", "")
    found = next((row for row in _ours() if (row.provider, row.name) == (provider, name)), None)
    if found is None:
        meant = suggest_model(name or like, among=_ours()) if isinstance(like, str) else ""
        hint = meant or "write provider:model, of embedkit_core.models()"
        raise ConfigurationError(f"{where}: like={like!r:.80} is no model of the catalogue; {hint}")
    return replace(found, name=base.name)


def find(name: str, provider: str | None = None) -> ModelInfo | None:
    """Give the row of a model, at whatever provider where none is named."""
    for row in rows():
        if row.name == name and provider in (None, row.provider):
            return row
    return None


def find_for(
    name: str, providers: Sequence[str], given: Mapping[str, Any] | None, otherwise: ModelInfo
) -> ModelInfo | None:
    """Give the row of a model at the first of these providers that has one, with what the user knows better.

    `otherwise` is what is to be thought of a model that has no row, where the user says something of it. Its limits are
    those of requests to the first provider, also for a model of another, whose price is not known there.

    Raises:
        ConfigurationError: naming what is wrong in what was `given`.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigurationError("model_info must be a mapping from fields of the catalogue to their values")
    found = next((row for provider in providers if (row := find(name, provider))), None)
    if given is None and found is None:
        return None
    fields = dict(given or {})
    base = _like(found or otherwise, fields, "model_info")
    if base.provider != providers[0]:
        limits = replace(otherwise.limits, text_tokens=base.limits.text_tokens)
        base = replace(base, limits=limits, usd_per_million=None, usd_per_million_batch=None)
    row = merged(base, fields, "model_info")
    if found is not None and found.dimensions and "like" not in (given or {}):
        _refuse_other_default(found, row)
    return row


def _refuse_other_default(known: ModelInfo, row: ModelInfo) -> None:
    """Refuse another default of a model whose own is known: nothing would tell the provider."""
    if row.dimensions != known.dimensions:
        raise ConfigurationError(
            f"model_info: {known.name} has {known.dimensions} dimensions where none are asked for; ask for others by "
            "dimensions="
        )


def suggest_model(name: str, provider: str | None = None, *, among: tuple[ModelInfo, ...] | None = None) -> str:
    """Return "did you mean 'provider:model'?" if `name` is close to a model of the catalogue, else "".

    Names that differ in a number are two models, of which one may be newer than this catalogue.
    """
    spelled, numbers = _spelled(name), _numbers(name)
    names = {
        _spelled(row.name): f"{row.provider}:{row.name}"
        for row in reversed(rows() if among is None else among)
        if provider in (None, row.provider) and _numbers(row.name) == numbers
    }
    return suggest(spelled, names, cutoff=ALIKE)


def _numbers(name: str) -> list[str]:
    """Give the numbers in a name; 4 and 4.0 are the same."""
    return re.findall(r"\d+", re.sub(r"(?<=\d)[.-]0(?!\d)", "", name))


def _spelled(name: str) -> str:
    return SEPARATORS.sub("-", name.strip().lower())
