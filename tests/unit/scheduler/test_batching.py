"""The pure parts: how requests are cut, when they are tried again, which replies and addresses are believed."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from math import ceil, isfinite, log2

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from embedkit_core.common.errors import BadReplyError, ConfigurationError, RateLimitError, UnavailableError
from embedkit_core.common.types import Limits, Reply
from embedkit_core.costs.tokens import estimate_tokens, split_bill
from embedkit_core.engine.batching import MAX_TEXTS, MAX_TOKENS, MIN_TEXTS, RequestCapacity, texts_per_request
from embedkit_core.engine.scheduler.items import RequestSpec
from embedkit_core.engine.scheduler.replies import validate
from embedkit_core.engine.scheduler.retry import RetryPolicy
from embedkit_core.providers.http.headers import retry_after
from embedkit_core.providers.http.redaction import MAX_EXCERPT, MIN_SHARED, canonical_url, safe_excerpt

counts = st.integers(0, 100_000)
few = st.integers(1, 300)
sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=300)

# Spreading


@given(waiting=counts, slots=st.integers(0, 100), cap=few)
def test_a_request_holds_no_more_than_the_cap_and_no_fewer_than_the_floor(waiting, slots, cap):
    assert min(MIN_TEXTS, cap) <= texts_per_request(waiting, slots, cap) <= cap


@given(waiting=st.integers(1, 100_000), slots=st.integers(1, 100), cap=st.integers(MIN_TEXTS, 300))
def test_requests_make_no_more_rounds_than_necessary(waiting, slots, cap):
    requests = ceil(waiting / texts_per_request(waiting, slots, cap))
    assert ceil(requests / slots) == ceil(waiting / (slots * cap)) or requests <= ceil(waiting / MIN_TEXTS)


@pytest.mark.parametrize(
    ("waiting", "slots", "texts"), [(500, 8, 63), (20, 16, 32), (20_000, 16, 250), (468, 8, 59), (0, 4, 32), (9, 0, 32)]
)
def test_waiting_texts_are_spread_as_documented(waiting, slots, texts):
    assert texts_per_request(waiting, slots, MAX_TEXTS) == texts


# Room

limits = st.builds(
    Limits, texts=st.integers(1, 5000), tokens=st.none() | st.integers(1, 500_000), text_tokens=st.none() | few
)


@given(limits)
def test_the_capacity_of_a_request_is_within_the_limits(limits):
    room = RequestCapacity.from_limits(limits)
    assert 1 <= room.texts <= limits.texts
    assert 1 <= room.tokens <= (limits.tokens or MAX_TOKENS)
    assert 1 <= room.text_tokens <= min(room.tokens, limits.text_tokens or room.tokens)


@given(limits, st.lists(sizes, max_size=5))
def test_a_refusal_never_raises_the_capacity_and_never_makes_it_zero(limits, refused):
    room = RequestCapacity.from_limits(limits)
    for one in refused:
        before = (room.texts, room.tokens)
        room.halve(one)
        assert 1 <= room.texts <= before[0]
        assert 1 <= room.tokens <= before[1]


@given(sizes)
def test_a_refused_batch_exceeds_the_new_capacity(refused):
    assume(len(refused) > 1)
    room = RequestCapacity.from_limits(Limits())
    room.halve(refused)
    assert room.texts < len(refused) or room.tokens < sum(refused)


def test_halving_reaches_one_text_in_log2_steps():
    room, fitting = RequestCapacity.from_limits(Limits()), [MAX_TEXTS]
    while fitting[-1] > 1 and len(fitting) < 20:
        room.halve([10] * fitting[-1])
        fitting.append(min(room.texts, room.tokens // 10))
    assert len(fitting) == 1 + log2(MAX_TEXTS)


# Sizes and shares


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=300))
def test_shares_of_a_bill_add_up_and_are_proportional_to_the_sizes(total, sizes):
    shares = split_bill(total, sizes)
    assert sum(shares) == total
    assert len(shares) == len(sizes)
    assert min(shares) >= 0
    if weight := sum(sizes):
        assert all(abs(share - total * size / weight) < 1 + 1e-6 for share, size in zip(shares, sizes, strict=True))


def tokens(text: str) -> int:
    return estimate_tokens(text, text.encode())


@given(st.text(), st.text())
def test_a_text_has_at_least_one_token_and_a_longer_text_no_fewer(a, b):
    assert 1 <= tokens(a) <= tokens(a + b)
    assert abs(tokens(a + b) - (tokens(a) + tokens(b))) <= 2


# Trying again


@given(st.integers(0, 10_000), st.integers())
def test_a_backoff_is_within_its_doubling_limit(failures, seed):
    policy = RetryPolicy()
    wait = policy.delay(failures, UnavailableError("down"), random.Random(seed))
    assert 0 <= wait <= min(policy.cap, policy.base * 2 ** min(failures, 16))


@given(st.floats(allow_nan=False), st.integers(0, 50))
def test_retry_after_is_respected_up_to_the_cap(seconds, failures):
    policy = RetryPolicy()
    wait = policy.delay(failures, RateLimitError("slow down", retry_after=seconds), random.Random(0))
    if seconds > 0:
        assert wait == min(max(seconds, policy.minimum * 2.0 ** min(failures, 16)), policy.retry_after_cap)
    else:  # which says nothing
        assert 0 <= wait <= policy.cap


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_retry_after_ms_takes_precedence_over_seconds(seconds, ms):
    assert retry_after({"retry-after": str(seconds)}, now=0.0) == seconds
    assert retry_after({"retry-after": "60", "retry-after-ms": str(ms)}, now=0.0) == pytest.approx(ms / 1000)
    assert retry_after({"retry-after": str(seconds), "retry-after-ms": "soon"}, now=0.0) == seconds


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.integers(-(10**6), 10**6))
def test_a_retry_after_date_is_read_as_the_seconds_until_then(now, ahead):
    now = now.replace(microsecond=0, tzinfo=UTC)
    date = now + timedelta(seconds=ahead)
    for spelled in (format_datetime(date, usegmt=True), date.strftime("%a, %d %b %Y %H:%M:%S")):
        assert retry_after({"retry-after": spelled}, now=now.timestamp()) == max(0, ahead)


@given(st.text() | st.floats().map(str) | st.integers().map(str))
@example("Fri, 31 Dec 99999999999999999999 23:59:59 GMT")
@example("Fri, 31 Dec 2026 23:59:59 +9999")
@example("9" * 5000)
def test_any_retry_after_header_is_finite_seconds_or_none(value):
    for name in ("retry-after", "retry-after-ms"):
        waits = retry_after({name: value}, now=1.8e9)
        assert waits is None or (isfinite(waits) and waits >= 0)
    assert retry_after({}, now=0.0) is None


# Replies

widths = st.integers(1, 16)
rows = st.integers(1, 12)


def lane(model: str) -> RequestSpec:
    return RequestSpec(b"wire", None, Limits(), "truncate", model, None, {})


@given(rows, widths, st.booleans(), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_reply_that_fits_is_believed(n, width, told, number):
    assume(number != 0)  # a vector of zeros is none
    validate(Reply(np.full((n, width), number, np.float32), None), n, width if told else None, lane("a:b"))


@given(rows, widths, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_one_number_that_is_not_finite_is_found(n, width, odd, data):
    vectors = np.ones((n, width), np.float32)
    vectors[data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, width - 1))] = odd
    with pytest.raises(BadReplyError, match="not finite"):
        validate(Reply(vectors, None), n, width, lane("a:b"))


@given(rows, widths, rows, widths)
def test_another_count_or_width_is_refused(n, width, rows, columns):
    assume((n, width) != (rows, columns))
    with pytest.raises(BadReplyError) as caught:
        validate(Reply(np.ones((rows, columns), np.float32), None), n, width, lane("some:model"))
    assert (caught.value.provider, caught.value.model) == ("some", "some:model")


@pytest.mark.parametrize("vectors", [np.ones((2, 3)), np.ones(2, np.float32), np.ones((2, 0), np.float32)])
def test_another_kind_of_array_is_refused(vectors):
    with pytest.raises(BadReplyError):
        validate(Reply(vectors, None), 2, None, lane("a:b"))


# Addresses

hosts = st.from_regex(r"[a-zA-Z][a-zA-Z0-9]{0,8}(\.[a-zA-Z]{2,5})?", fullmatch=True) | st.just("[::1]")
paths = st.sampled_from(["", "/", "/v1", "/v1/", "/V1", "/a/b//"])
schemes = st.sampled_from(["http", "https"])


@given(schemes, hosts, st.none() | st.integers(1, 65535), paths)
def test_an_address_has_one_spelling(scheme, host, port, path):
    url = f"{scheme}://{host}{'' if port is None else f':{port}'}{path}"
    one = canonical_url(url)
    assert canonical_url(one) == one
    assert canonical_url(f" {scheme.upper()}://{host.upper()}{url[len(scheme) + 3 + len(host) :]}\n") == one
    assert one.startswith(f"{scheme}://{host.lower()}")


@given(schemes, hosts)
def test_a_default_port_and_a_trailing_slash_change_nothing_and_all_else_does(scheme, host):
    default, other = (80, 443) if scheme == "http" else (443, 80)
    same = [f"{scheme}://{host}/v1", f"{scheme}://{host}/v1/", f"{scheme}://{host}:{default}/v1"]
    others = [f"{scheme}://{host}:{other}/v1", f"{scheme}://{host}/v2", f"{scheme}://{host}/V1", f"{scheme}://{host}"]
    assert len({canonical_url(url) for url in same}) == 1
    assert len({canonical_url(url) for url in same[:1] + others}) == 1 + len(others)


NO_ADDRESS = ["", " ", "localhost:8000", "ftp://host/v1", "http://", "http://:80", "http://host:port/v1"]
NO_ADDRESS += [
    "http://host/v1?key=pa55word",
    "http://host/v1/embeddings",
    "http://host:99999",
    "http://[::1/v1",
    "https://user:pa55word@host/v1",
    "http://user:pa55word@host:port",
]


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_address_is_a_configuration_error_that_shows_no_password(url):
    with pytest.raises(ConfigurationError, match="base_url") as caught:
        canonical_url(url)
    assert "pa55word" not in str(caught.value)


# What may be quoted of a server's text

KEY = "sk-secret-0123456789"


@given(st.text(max_size=90), st.text(min_size=MIN_SHARED, max_size=110), st.text(max_size=90), st.data())
def test_a_message_that_repeats_a_piece_of_a_text_is_dropped(before, text, after, data):
    start = data.draw(st.integers(0, len(text) - MIN_SHARED))
    piece = " ".join(text[start:].split())
    assume(len(piece) >= MIN_SHARED)
    message = " ".join((before + text[start:] + after).split())
    assume(piece[:MIN_SHARED] in message[:MAX_EXCERPT])
    assert safe_excerpt(message, ["another text", text], [KEY]) == ""


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_message_that_repeats_the_key_is_dropped(before, after):
    assert safe_excerpt(before + KEY + after, [], [KEY]) == ""


@given(st.text(max_size=500), st.lists(st.text(max_size=50), max_size=3))
def test_what_is_quoted_is_a_short_line_of_the_message(message, texts):
    quoted = safe_excerpt(message, texts, [KEY])
    assert quoted == "" or (quoted.startswith(": ") and len(quoted) <= MAX_EXCERPT + 2 and "\n" not in quoted)
    assert quoted[2:] in " ".join(message.split())


def test_an_innocent_message_is_quoted_and_one_with_a_short_text_is_not():
    message = "The model `nomic` does not exist"
    assert safe_excerpt(message, ["some text", "hi"], [KEY]) == f": {message}"
    assert safe_excerpt(message, ["some text", "NOMIC"], [KEY]) == ""
