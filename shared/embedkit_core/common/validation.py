"""Validation of argument values; each check raises ConfigurationError with the fix."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import InputType

MINIMUMS = {
    "max_concurrency": 1,
    "requests_per_minute": 1,
    "tokens_per_minute": 1,
    "max_batch_texts": 1,
    "max_retries": 0,
}
MAX_NUMBER = 1_000_000_000
REQUIRED_NUMBERS = ("max_concurrency", "max_retries")
SECONDS = ("timeout", "deadline")


def is_valid_text(value: object) -> bool:
    """Tell whether something is a string that UTF-8 can carry."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ConfigurationError unless a setting has one of the values allowed."""
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        listed = ", ".join(map(repr, names))
        hint = suggest(value, names)
        raise ConfigurationError(f"{name}={value!r} is not one of {listed}{hint and f'; {hint}'}")


def check_integer(name: str, value: object, least: int) -> None:
    """Raise ConfigurationError unless a setting is a whole number that is large enough."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r:.80} must be a whole number of at least {least}")
    if value > MAX_NUMBER:
        raise ConfigurationError(f"{name} is more than {MAX_NUMBER:,}; leave it out for no limit")


def check_limiter(limiter: object) -> None:
    """Raise ConfigurationError unless a rate limiter that was given can be waited for on a thread."""
    acquire = getattr(limiter, "acquire", None)
    if limiter is not None and not callable(acquire):
        raise ConfigurationError(f"rate_limiter={type(limiter).__name__} has no method acquire()")
    if inspect.iscoroutinefunction(acquire):
        raise ConfigurationError(
            f"rate_limiter={type(limiter).__name__} has an async acquire(); give one whose acquire() blocks: it is "
            "called on a thread of the library's own and holds up no event loop"
        )


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless the settings that are numbers are such as can be."""
    for name, least in MINIMUMS.items():
        if arguments[name] is not None or name in REQUIRED_NUMBERS:
            check_integer(name, arguments[name], least)
    for name in SECONDS:
        check_seconds(name, arguments[name])


def check_seconds(name: str, value: object) -> None:
    """Raise ConfigurationError unless a setting is a time in seconds, or None for no limit."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_NUMBER:
        raise ConfigurationError(f"{name}={value!r:.80} must be a number of seconds above 0, or None for no limit")


def parse_usd(name: str, value: object) -> Decimal:
    """Give an amount of USD, 0 or more, of a number or the text of one; raise ConfigurationError for anything else."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
            raise ValueError
        usd = Decimal(str(value).strip().removeprefix("$"))
        if not usd.is_finite() or not 0 <= usd <= MAX_NUMBER:
            raise ValueError
    except (ValueError, ArithmeticError):
        raise ConfigurationError(
            f"{name}={value!r:.40} must be an amount of USD, 0 or more, as in {name}=0.5"
        ) from None
    return usd


def check_unknown(owner: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigurationError for arguments that do not exist, naming the nearest that do."""
    names = list(known)
    for name in unknown:
        raise unknown_argument(owner, name, names, listed=names)


def unknown_argument(owner: str, name: str, known: list[str], *, listed: list[str]) -> ConfigurationError:
    """Give the error for an argument that does not exist: the nearest one known, or where none is near, a list."""
    hint = suggest(name, known) or f"it takes {', '.join(listed)}"
    return ConfigurationError(f"{owner} takes no argument {name!r}; {hint}")


def check_input_type(input_type: str) -> None:
    """Raise ConfigurationError unless the input type is one of ours."""
    check_choice("input_type", input_type, get_args(InputType))
