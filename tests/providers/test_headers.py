"""Rate limit headers: what is parsed, and what is ignored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedkit_core.common.types import LimitStatus, RateLimitStatus
from embedkit_core.providers.http.headers import parse_duration, rate_limit_status


def headers(limit: object, remaining: object, reset: object, of: str = "tokens") -> dict[str, str]:
    told = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{of}": str(value) for name, value in told.items() if value is not None}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12ms", 0.012),
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("250µs", 0.00025),
        ("0s", 0),
        ("59", 59),
        ("0.5", 0.5),
        ("-1", None),
        ("soon", None),
        ("1s later", None),
        ("", None),
        (None, None),
        ("1764000000", None),  # a date
    ],
)
def test_durations_are_parsed_in_go_format_and_in_seconds(text, seconds):
    assert parse_duration(text) == (pytest.approx(seconds) if seconds is not None else None)


def test_the_remaining_requests_and_tokens_are_parsed():
    told = headers(10_000, 9_999, "6ms", "requests") | headers(1_000_000, 400_000, "36s")
    assert rate_limit_status(told) == RateLimitStatus(
        LimitStatus(10_000, 9_999, pytest.approx(0.006)), LimitStatus(1_000_000, 400_000, 36.0)
    )


def test_headers_without_limits_give_no_status():
    assert rate_limit_status({"content-type": "application/json"}) is None


@pytest.mark.parametrize(
    ("limit", "remaining"), [(None, 5), (5, None), (0, 0), (-1, -1), (10, -1), (10, 11), ("many", 3), ("inf", 3)]
)
def test_impossible_limits_are_ignored(limit, remaining):
    assert rate_limit_status(headers(limit, remaining, "1s")) is None


def test_a_limit_without_a_reset_time_is_parsed():
    assert rate_limit_status(headers(100, 50, None)) == RateLimitStatus(None, LimitStatus(100, 50, None))


@given(st.dictionaries(st.sampled_from(list(headers(1, 1, 1)) + list(headers(1, 1, 1, "requests"))), st.text()))
def test_no_header_value_raises(told):
    found = rate_limit_status(told)
    for allowance in found or ():
        assert allowance is None or 0 <= allowance.remaining <= allowance.limit
