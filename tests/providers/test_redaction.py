"""Spelling of base URLs, and what an error may quote from the text of a server."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.rows import check_rows

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.http.redaction import MAX_EXCERPT, MIN_SHARED, canonical_url, safe_excerpt

# Base URLs

hosts = st.from_regex(r"[a-zA-Z][a-zA-Z0-9]{0,8}(\.[a-zA-Z]{2,5})?", fullmatch=True) | st.just("[::1]")
paths = st.sampled_from(["", "/", "/v1", "/v1/", "/V1", "/a/b//"])
schemes = st.sampled_from(["http", "https"])


@given(schemes, hosts, st.none() | st.integers(1, 65535), paths)
def test_equal_addresses_have_one_spelling(scheme, host, port, path):
    url = f"{scheme}://{host}{'' if port is None else f':{port}'}{path}"
    one = canonical_url(url)
    assert canonical_url(one) == one
    assert canonical_url(f" {scheme.upper()}://{host.upper()}{url[len(scheme) + 3 + len(host) :]}\n") == one
    assert one.startswith(f"{scheme}://{host.lower()}")


@given(schemes, hosts)
def test_only_a_default_port_and_a_trailing_slash_make_no_difference(scheme, host):
    default, other = (80, 443) if scheme == "http" else (443, 80)
    same = [f"{scheme}://{host}/v1", f"{scheme}://{host}/v1/", f"{scheme}://{host}:{default}/v1"]
    others = [f"{scheme}://{host}:{other}/v1", f"{scheme}://{host}/v2", f"{scheme}://{host}/V1", f"{scheme}://{host}"]
    assert len({canonical_url(url) for url in same}) == 1
    assert len({canonical_url(url) for url in same[:1] + others}) == 1 + len(others)


INVALID = ["", " ", "localhost:8000", "ftp://host/v1", "http://", "http://:80", "http://host:port/v1"]
INVALID += [
    "http://host/v1?key=pa55word",
    "http://host/v1/embeddings",
    "http://host:99999",
    "http://[::1/v1",
    "https://user:pa55word@host/v1",
    "http://user:pa55word@host:port",
]


def test_an_invalid_address_is_a_configuration_error_that_shows_no_password():
    def check(url):
        with pytest.raises(ConfigurationError, match="base_url") as caught:
            canonical_url(url)
        assert "pa55word" not in str(caught.value)

    check_rows(INVALID, check)


# Excerpts

KEY = "sk-secret-0123456789"


@given(st.text(max_size=90), st.text(min_size=MIN_SHARED, max_size=110), st.text(max_size=90), st.data())
def test_a_message_that_contains_part_of_a_text_is_dropped(before, text, after, data):
    start = data.draw(st.integers(0, len(text) - MIN_SHARED))
    part = " ".join(text[start:].split())
    assume(len(part) >= MIN_SHARED)
    message = " ".join((before + text[start:] + after).split())
    assume(part[:MIN_SHARED] in message[:MAX_EXCERPT])
    assert safe_excerpt(message, ["another text", text], [KEY]) == ""


@given(st.text(max_size=50), st.text(max_size=50))
def test_a_message_that_contains_the_key_is_dropped(before, after):
    assert safe_excerpt(before + KEY + after, [], [KEY]) == ""


@given(st.text(max_size=500), st.lists(st.text(max_size=50), max_size=3))
def test_an_excerpt_is_a_short_line_of_the_message(message, texts):
    quoted = safe_excerpt(message, texts, [KEY])
    assert quoted == "" or (quoted.startswith(": ") and len(quoted) <= MAX_EXCERPT + 2 and "\n" not in quoted)
    assert quoted[2:] in " ".join(message.split())


def test_a_harmless_message_is_quoted_and_one_with_a_short_text_is_not():
    message = "The model `nomic` does not exist"
    assert safe_excerpt(message, ["some text", "hi"], [KEY]) == f": {message}"
    assert safe_excerpt(message, ["some text", "NOMIC"], [KEY]) == ""
