"""A row of the catalogue, from what a file or a user says: every field checked, every flaw named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import InputType, Limits, ModelInfo
from embedkit_core.common.vectors import Cut, DType

MOST = 1 << 20  # dimensions, beyond any model


class _WrongError(Exception):
    """What a value should have been."""


def merged(base: ModelInfo, given: Mapping[str, Any], where: str) -> ModelInfo:
    """Give a row in which the fields given stand in place of the base's; `where` says who gave them.

    Raises:
        ConfigurationError: naming the field, and the nearest that there is.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{where} must be a mapping from fields of the catalogue to their values")
    fields: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _FIELDS:
            hint = suggest(name, list(_FIELDS)) or f"there are {', '.join(_FIELDS)}"
            raise ConfigurationError(f"{where} has no field {str(name)!r:.60}; {hint}")
        try:
            read = _FIELDS[name](value)
        except _WrongError as flaw:
            raise ConfigurationError(f"{where}: {name} must be {flaw}, not {value!r:.60}") from None
        (limits if name in _LIMITS else fields)[_LIMITS.get(name, name)] = read
    row = replace(base, limits=replace(base.limits, **limits), **fields)
    if row.dimensions and row.allowed_dimensions and row.dimensions not in row.allowed_dimensions:
        if "allowed_dimensions" in given:
            raise ConfigurationError(f"{where}: the dimensions {row.dimensions} are not among allowed_dimensions")
        row = replace(row, allowed_dimensions=(row.dimensions,))
    return row


def unknown(provider: str, name: str) -> ModelInfo:
    """Give the row of a model of which nothing is known."""
    return ModelInfo(provider, name, None, None, Limits(), None, "unknown", "")


def as_json(row: ModelInfo) -> dict[str, Any]:
    """Give a row as the file has it."""
    allowed: Any = row.allowed_dimensions
    if isinstance(allowed, range):
        allowed = {"min": allowed.start, "max": allowed.stop - 1}
    known = {name: getattr(row, name) for name in _FIELDS if name not in _LIMITS}
    known |= {name: getattr(row.limits, of) for name, of in _LIMITS.items()}
    prices = {n: None if known[n] is None else str(known[n]) for n in known if n.startswith("usd_")}
    return known | prices | {"allowed_dimensions": allowed, "prompts": dict(row.prompts), "dtypes": list(row.dtypes)}


def _whole(value: Any, most: int = 10**12) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise _WrongError("a whole number of at least 1")
    return value


def _price(value: Any) -> Decimal:
    flaw = _WrongError("a price in USD, 0 or more")
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise flaw
    try:
        price = Decimal(str(value))  # never through the binary digits of a float
    except InvalidOperation:
        raise flaw from None
    if not price.is_finite() or price < 0:
        raise flaw
    return price


def _choices(value: Any) -> tuple[int, ...] | range:
    flaw = _WrongError('a list of whole numbers, or {"min": 1, "max": 1536}')
    if isinstance(value, range) and value.step == 1 and len(value) and value.start >= 1:
        return value
    if isinstance(value, Mapping):
        if value.keys() != {"min", "max"}:
            raise flaw
        least, most = _whole(value["min"], MOST), _whole(value["max"], MOST)
        if least > most:
            raise flaw
        return range(least, most + 1)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise flaw
    return tuple(sorted(_whole(n, MOST) for n in value))


def _prompts(value: Any) -> dict[InputType, str]:
    roles = get_args(InputType)
    if not isinstance(value, Mapping) or not all(k in roles and isinstance(v, str) for k, v in value.items()):
        raise _WrongError('a mapping such as {"query": "query: ", "document": "passage: "}')
    return dict(value)


def _types(value: Any) -> tuple[DType, ...]:
    known = get_args(DType)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value or not all(v in known for v in value):
        raise _WrongError(f"a list of {', '.join(known)}")
    return tuple(value)


def _one_of(*allowed: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
            raise _WrongError(f"one of {', '.join(map(repr, allowed))}")
        return value

    return check


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise _WrongError("a string")
    return value


def _maybe(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


# Fields that change no vector.
VECTORLESS = frozenset(
    {"text_tokens", "request_texts", "request_tokens", "usd_per_million", "usd_per_million_batch", "price_source"}
    | {"status", "released", "retired", "successor", "tokenizer", "checked_on", "source", "note"}
)
_LIMITS = {"text_tokens": "text_tokens", "request_texts": "texts", "request_tokens": "tokens"}
_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "status": _words,
    "released": _maybe(_words),
    "retired": _maybe(_words),
    "successor": _maybe(_words),
    "dimensions": _maybe(lambda value: _whole(value, MOST)),
    "allowed_dimensions": _maybe(_choices),
    "cut": _maybe(_one_of(*get_args(Cut))),
    "dtypes": _types,
    "unit_length": _one_of(True, False, None),
    "asymmetric": _one_of(True, False),
    "prompts": _prompts,
    "space": _maybe(_words),
    "tokenizer": _maybe(_words),
    "text_tokens": _maybe(_whole),
    "request_texts": _whole,
    "request_tokens": _maybe(_whole),
    "usd_per_million": _maybe(_price),
    "usd_per_million_batch": _maybe(_price),
    "checked_on": _maybe(_words),
    "source": _words,
    "price_source": _maybe(_words),
    "note": _maybe(_words),
}
