"""What providers say in the headers of an answer: how long to wait, and what is left of their limits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC

from embedkit_core.common.types import LimitStatus, RateLimitStatus

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_DAY = 86_400.0


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Read how many seconds a server asks to wait, from `retry-after-ms` or `retry-after` (seconds or an HTTP date).

    `now` is the wall-clock time in seconds since the epoch; header names are lower case.
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


def headroom(headers: Mapping[str, str]) -> RateLimitStatus | None:
    """Read `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; None where there is nothing of it to believe.

    Header names are lower case. A reset is a duration as Go writes it ("6m0s", "12ms"), or a number of seconds.
    Source: OpenAI, https://platform.openai.com/docs/guides/rate-limits, read 2026-11-20.
    """
    requests, tokens = _allowance(headers, "requests"), _allowance(headers, "tokens")
    return RateLimitStatus(requests, tokens) if requests or tokens else None


def _allowance(headers: Mapping[str, str], of: str) -> LimitStatus | None:
    limit, remaining = (_number(headers.get(f"x-ratelimit-{what}-{of}")) for what in ("limit", "remaining"))
    if limit is None or remaining is None or limit < 1 or remaining > limit:
        return None
    return LimitStatus(limit, remaining, duration(headers.get(f"x-ratelimit-reset-{of}")))


def duration(text: str | None) -> float | None:
    """Give the seconds of a duration as Go writes it, or of a plain number; None for what is neither."""
    if not text:
        return None
    seconds = _number(text)
    if seconds is None:
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            return None
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return seconds if seconds <= _DAY else None  # more is no duration, but a date


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
