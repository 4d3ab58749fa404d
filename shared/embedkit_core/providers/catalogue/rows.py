"""Rows of the catalogue from the fields of a file or `model_info`, with a check of each field. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import InputType, Limits, ModelInfo, Task
from embedkit_core.common.vectors import Cut, DType

MAX_DIMENSIONS = 1 << 20  # more than any model has


class _FieldError(Exception):
    """A field has an invalid value; the message describes valid ones."""


def not_a_mapping(where: str, value: object) -> ConfigurationError:
    """Return the error for fields that are not a mapping."""
    return ConfigurationError(
        f"{where}: must be a mapping from catalogue fields to values (got {type(value).__name__}). "
        "Pass {field: value}."
    )


def merge_fields(base: ModelInfo, overrides: Mapping[str, Any], where: str) -> ModelInfo:
    """Return `base` with the `overrides` applied.

    Args:
        base: The row to change.
        overrides: New values by field name.
        where: Where the fields come from, for error messages.

    Raises:
        ConfigurationError: A field is unknown, or its value is invalid.
    """
    if not isinstance(overrides, Mapping):
        raise not_a_mapping(where, overrides)
    fields: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in _FIELDS:
            hint = suggest(name, list(_FIELDS)) or f"use {', '.join(_FIELDS)}"
            raise ConfigurationError(f"{where}: unknown field {str(name)!r:.60}; {hint}")
        try:
            checked = _FIELDS[name](value)
        except _FieldError as expected:
            raise ConfigurationError(f"{where}: {name} must be {expected} (got {value!r:.60})") from None
        (limits if name in _LIMITS else fields)[_LIMITS.get(name, name)] = checked
    if "usd_per_million" in fields:  # a price is as good as the row that states it
        fields.setdefault("confirmed", True)
    row = replace(base, limits=replace(base.limits, **limits), **fields)
    if row.dimensions and row.allowed_dimensions and row.dimensions not in row.allowed_dimensions:
        if "allowed_dimensions" in overrides:
            raise ConfigurationError(f"{where}: dimensions must be among allowed_dimensions (got {row.dimensions})")
        row = replace(row, allowed_dimensions=(row.dimensions,))
    return row


def unknown_model(provider: str, name: str) -> ModelInfo:
    """Return a row in which every fact is unknown."""
    return ModelInfo(provider, name, None, None, Limits(), None, "unknown", "")


def as_json(row: ModelInfo) -> dict[str, Any]:
    """Return a row with the fields of the JSON file."""
    allowed: Any = row.allowed_dimensions
    if isinstance(allowed, range):
        allowed = {"min": allowed.start, "max": allowed.stop - 1}
    fields = {name: getattr(row, name) for name in _FIELDS if name not in _LIMITS}
    fields |= {name: getattr(row.limits, limit) for name, limit in _LIMITS.items()}
    prices = {n: None if v is None else str(v) for n, v in fields.items() if n.startswith("usd_")}
    tasks = {task: dict(values) for task, values in row.tasks.items()}
    lists = {"allowed_dimensions": allowed, "dtypes": list(row.dtypes)}
    return fields | prices | lists | {"prompts": dict(row.prompts), "tasks": tasks}


def _whole(value: Any, maximum: int = 10**12) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise _FieldError("a whole number of at least 1")
    return value


def _price(value: Any) -> Decimal:
    error = _FieldError("a price in USD, 0 or more")
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        raise error
    try:
        price = Decimal(str(value))  # str keeps the decimal digits of a float
    except InvalidOperation:
        raise error from None
    if not price.is_finite() or price < 0:
        raise error
    return price


def _allowed_dimensions(value: Any) -> tuple[int, ...] | range:
    error = _FieldError('a list of whole numbers, or {"min": 1, "max": 1536}')
    if isinstance(value, range) and value.step == 1 and len(value) and value.start >= 1:
        return value
    if isinstance(value, Mapping):
        if value.keys() != {"min", "max"}:
            raise error
        minimum, maximum = _whole(value["min"], MAX_DIMENSIONS), _whole(value["max"], MAX_DIMENSIONS)
        if minimum > maximum:
            raise error
        return range(minimum, maximum + 1)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise error
    return tuple(sorted(_whole(n, MAX_DIMENSIONS) for n in value))


def _prompts(value: Any) -> dict[InputType, str]:
    names = get_args(InputType)
    if not isinstance(value, Mapping) or not all(k in names and isinstance(v, str) for k, v in value.items()):
        raise _FieldError('a mapping such as {"query": "query: ", "document": "passage: "}')
    return dict(value)


def _tasks(value: Any) -> dict[Task, dict[InputType, str]]:
    names, error = (
        get_args(Task),
        _FieldError(
            'a mapping from tasks to a string, or to one per input type, such as {"clustering": "clustering", "code": '
            '{"query": "code.query", "document": "code.passage"}}'
        ),
    )
    if not isinstance(value, Mapping):
        raise error
    tasks: dict[Task, dict[InputType, str]] = {}
    for name, given in value.items():
        of_input_types = dict.fromkeys(get_args(InputType), given) if isinstance(given, str) else given
        if name not in names or not isinstance(of_input_types, Mapping):
            raise error
        if set(of_input_types) != set(get_args(InputType)) or not all(map(_is_string, of_input_types.values())):
            raise error
        tasks[name] = dict(of_input_types)
    return tasks


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _dtypes(value: Any) -> tuple[DType, ...]:
    known = get_args(DType)
    if isinstance(value, str) or not isinstance(value, Sequence) or not value or not all(v in known for v in value):
        raise _FieldError(f"a list of {', '.join(known)}")
    return tuple(value)


def _one_of(*allowed: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in allowed):
            raise _FieldError(f"one of {', '.join(map(repr, allowed))}")
        return value

    return check


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _FieldError("a string")
    return value


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


# Fields that do not change vectors.
NON_VECTOR_FIELDS = frozenset(
    {"text_tokens", "request_texts", "request_tokens", "usd_per_million", "usd_per_million_batch", "price_source"}
    | {
        "status",
        "released",
        "retired",
        "successor",
        "tokenizer",
        "checked_on",
        "source",
        "note",
        "confirmed",
        "limits_confirmed",
    }
)
_LIMITS = {"text_tokens": "text_tokens", "request_texts": "texts", "request_tokens": "tokens"}
_FIELDS: Mapping[str, Callable[[Any], Any]] = {
    "status": _string,
    "released": _optional(_string),
    "retired": _optional(_string),
    "successor": _optional(_string),
    "dimensions": _optional(lambda value: _whole(value, MAX_DIMENSIONS)),
    "allowed_dimensions": _optional(_allowed_dimensions),
    "cut": _optional(_one_of(*get_args(Cut))),
    "dtypes": _dtypes,
    "unit_length": _one_of(True, False, None),
    "asymmetric": _one_of(True, False),
    "prompts": _prompts,
    "tasks": _tasks,
    "space": _optional(_string),
    "tokenizer": _optional(_string),
    "text_tokens": _optional(_whole),
    "request_texts": _whole,
    "request_tokens": _optional(_whole),
    "usd_per_million": _optional(_price),
    "usd_per_million_batch": _optional(_price),
    "checked_on": _optional(_string),
    "source": _string,
    "price_source": _optional(_string),
    "note": _optional(_string),
    "confirmed": _one_of(True, False),
    "limits_confirmed": _one_of(True, False),
}
