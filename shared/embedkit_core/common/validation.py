"""Validation of argument values; each check raises ConfigurationError with the fix. No I/O."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, get_args

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.formatting import suggest
from embedkit_core.common.types import InputType

MIN_INTEGERS = {
    "max_concurrency": 1,
    "requests_per_minute": 1,
    "tokens_per_minute": 1,
    "max_batch_texts": 1,
    "max_retries": 0,
}
REQUIRED_INTEGERS = ("max_concurrency", "max_retries")
DURATIONS = ("timeout", "deadline")
MAX_NUMBER = 1_000_000_000
INPUT_TYPES = get_args(InputType)
MAX_NAME = 100  # characters
MIN_SIMILARITY = 0.65  # of an unknown argument to a known one, for "did you mean"; "device" is 0.57 like "deadline"


def is_valid_text(value: object) -> bool:
    """Return True if a value is a string that UTF-8 can encode."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Check that an argument has one of the allowed values.

    Raises:
        ConfigurationError: The value is not one of them.
    """
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        listed = ", ".join(map(repr, names))
        hint = suggest(value.lower(), names) if isinstance(value, str) else ""
        raise ConfigurationError(f"{name}: must be one of {listed} (got {value!r}){hint and f'; {hint}'}")


def check_integer(name: str, value: object, least: int) -> None:
    """Check that an argument is an integer from `least` to `MAX_NUMBER`.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}: must be an integer of at least {least} (got {value!r:.80})")
    if value > MAX_NUMBER:
        raise ConfigurationError(f"{name}: must be at most {MAX_NUMBER:,}. Omit it for no limit.")


def check_name(name: str, value: object) -> None:
    """Check that an argument is a name: 1 to 100 printable characters.

    Raises:
        ConfigurationError: It is not.
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise ConfigurationError(
            f"{name}: must be a string of 1 to {MAX_NAME} printable characters (got {value!r:.80})"
        )


def check_limiter(limiter: object) -> None:
    """Check that a rate limiter has a blocking method acquire().

    Raises:
        ConfigurationError: It has none, or an async one.
    """
    acquire = getattr(limiter, "acquire", None)
    if limiter is not None and not callable(acquire):
        raise ConfigurationError(f"rate_limiter: must have a method acquire() (got {type(limiter).__name__})")
    if inspect.iscoroutinefunction(acquire):
        raise ConfigurationError(
            f"rate_limiter: acquire() must not be async (got {type(limiter).__name__}). Pass a limiter whose acquire() "
            "blocks; it runs on a separate thread and does not block an event loop."
        )


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Check the numeric arguments of an embedder.

    Raises:
        ConfigurationError: One of them is not valid.
    """
    for name, least in MIN_INTEGERS.items():
        if arguments[name] is not None or name in REQUIRED_INTEGERS:
            check_integer(name, arguments[name], least)
    for name in DURATIONS:
        check_seconds(name, arguments[name])


def check_seconds(name: str, value: object) -> None:
    """Check that an argument is a duration in seconds, or None for no limit.

    Raises:
        ConfigurationError: It is neither.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_NUMBER:
        raise ConfigurationError(
            f"{name}: must be a number of seconds above 0, or None for no limit (got {value!r:.80})"
        )


def parse_usd(name: str, value: object) -> Decimal:
    """Return an amount of USD as a decimal; `value` is a number or a string such as "0.5" or "$0.5".

    Raises:
        ConfigurationError: It is not an amount of 0 or more.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
            raise ValueError
        usd = Decimal(str(value).strip().removeprefix("$"))
        if not usd.is_finite() or not 0 <= usd <= MAX_NUMBER:
            raise ValueError
    except (ValueError, ArithmeticError):
        raise ConfigurationError(
            f"{name}: must be an amount of USD, 0 or more (got {value!r:.40}). Example: {name}=0.5"
        ) from None
    return usd


def check_no_positional(callee: str, n: int) -> None:
    """Check that only the model was passed by position; `n` is the number of further values.

    Raises:
        ConfigurationError: There are further values.
    """
    if n:
        raise ConfigurationError(
            f"{callee} takes one positional argument, the model (got {n + 1}). Pass the others by name, as in api_key=."
        )


def check_unknown(callee: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Check that there are no unknown arguments.

    Raises:
        ConfigurationError: There is one; the message has the most similar known argument.
    """
    names = list(known)
    for name in unknown:
        raise unknown_argument(callee, name, names, listed=names)


def unknown_argument(callee: str, name: str, known: list[str], *, listed: list[str]) -> ConfigurationError:
    """Return the error for an unknown argument, with its name here, the most similar of `known`, or all of `listed`."""
    from embedkit_core.common.foreign_names import ADVICE  # only errors need it

    hint = ADVICE.get(name) or suggest(name, known, cutoff=MIN_SIMILARITY) or f"it takes {', '.join(listed)}"
    return ConfigurationError(f"{callee} takes no argument {name!r}; {hint}")


def check_input_type(input_type: str) -> None:
    """Check that an input type is "document" or "query".

    Raises:
        ConfigurationError: It is neither.
    """
    check_choice("input_type", input_type, INPUT_TYPES)
