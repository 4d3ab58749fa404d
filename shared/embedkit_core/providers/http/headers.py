"""Retry delays and rate limits in the headers of a response. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC

from embedkit_core.common.types import LimitStatus, RateLimitStatus

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_MAX_RESET_SECONDS = 86_400.0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds to wait from `retry-after-ms` or `retry-after` (seconds or an HTTP date), None without either.

    Args:
        headers: Headers with names in lower case.
        now: Wall-clock time in seconds since the epoch.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    if "retry-after" not in headers:
        return None
    import email.utils

    try:
        date = email.utils.parsedate_to_datetime(headers["retry-after"])
    except (TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)


def rate_limit_status(headers: Mapping[str, str]) -> RateLimitStatus | None:
    """Return the limits in `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, None if none is plausible.

    Header names are lower case. A reset is a Go duration ("6m0s", "12ms") or a number of seconds.
    Source: OpenAI, https://platform.openai.com/docs/guides/rate-limits, read 2026-11-20.
    """
    requests, tokens = _limit_status(headers, "requests"), _limit_status(headers, "tokens")
    return RateLimitStatus(requests, tokens) if requests or tokens else None


def _limit_status(headers: Mapping[str, str], unit: str) -> LimitStatus | None:
    limit, remaining = (_number(headers.get(f"x-ratelimit-{field}-{unit}")) for field in ("limit", "remaining"))
    if limit is None or remaining is None or limit < 1 or remaining > limit:
        return None
    return LimitStatus(limit, remaining, parse_duration(headers.get(f"x-ratelimit-reset-{unit}")))


def parse_duration(text: str | None) -> float | None:
    """Return the seconds of a Go duration or a plain number, None for anything else."""
    if not text:
        return None
    seconds = _number(text)
    if seconds is None:
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            return None
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return seconds if seconds <= _MAX_RESET_SECONDS else None  # more is a date, not a duration


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
