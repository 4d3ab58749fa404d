"""What is known of models: dimensions, limits and prices as data, with their sources."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from embedkit_core.types import Limits, ModelInfo


def _row(raw: Mapping[str, Any]) -> ModelInfo:
    allowed = raw["allowed_dimensions"]
    limits = Limits(texts=raw["request_texts"] or 2048, tokens=raw["request_tokens"], text_tokens=raw["text_tokens"])
    return ModelInfo(
        provider=raw["provider"],
        name=raw["name"],
        dimensions=raw["dimensions"],
        allowed_dimensions=range(allowed["min"], allowed["max"] + 1) if isinstance(allowed, dict) else tuple(allowed),
        limits=limits,
        usd_per_million=_price(raw["usd_per_million"]),
        status=raw["status"],
        source=raw["source"],
        usd_per_million_batch=_price(raw["usd_per_million_batch"]),
        dtypes=tuple(raw["dtypes"]),
        cut=raw["cut"],
        unit_length=raw["unit_length"],
        asymmetric=raw["asymmetric"],
        prompts=raw["prompts"],
        space=raw["space"],
        tokenizer=raw["tokenizer"],
        released=raw["released"],
        read=raw["read"],
    )


def _price(raw: str | None) -> Decimal | None:
    return None if raw is None else Decimal(raw)


@cache
def rows() -> tuple[ModelInfo, ...]:
    """Give every row of the catalogue."""
    text = Path(__file__).with_name("models.json").read_text(encoding="utf-8")
    return tuple(_row(raw) for raw in json.loads(text)["models"])


def find(name: str, provider: str | None = None) -> ModelInfo | None:
    """Give the row of a model, at whatever provider where none is named."""
    for row in rows():
        if row.name == name and provider in (None, row.provider):
            return row
    return None


def find_for(name: str, providers: Sequence[str], given: Mapping[str, Any] | None = None) -> ModelInfo | None:
    """Give the row of a model at the first of these providers that has one, with what the user knows better."""
    found = next((row for provider in providers if (row := find(name, provider))), None)
    return replace(found, **given) if given and found else found


def near(name: str, provider: str | None = None) -> str | None:
    """Give the catalogue's name that a mistyped one may have meant, as provider:model."""
    names = {row.name: row for row in rows() if provider in (None, row.provider)}
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"{names[close[0]].provider}:{close[0]}" if close else None
