"""Spelling of base URLs, and what an error may quote from the text of a server."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.rows import check_rows

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.providers.http.address import canonical_url
from embedkit_core.providers.http.redaction import (
    MAX_EXCERPT,
    MAX_SEARCHED,
    MIN_SHARED,
    printable,
    safe_excerpt,
    safe_request_id,
)

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
    assert quoted == "" or (quoted.startswith(": ") and len(quoted) <= MAX_EXCERPT + 2 and quoted.isprintable())
    assert quoted[2:].replace(" ", "") in "".join(c for c in printable(message) if not c.isspace())


def test_a_harmless_message_is_quoted_and_one_with_a_short_text_is_not():
    message = "The model `nomic` does not exist"
    assert safe_excerpt(message, ["some text", "hi"], [KEY]) == f": {message}"
    assert safe_excerpt(message, ["some text", "NOMIC"], [KEY]) == ""


@pytest.mark.parametrize(
    "control", ["\x1b[31m", "\x1b]0;title\x07", "\x9b2J", "\x1bc", "\x00", "\x08", "\u202e", "\r\n"]
)
def test_control_characters_and_terminal_escapes_are_removed(control):
    quoted = safe_excerpt(f"{control}The model{control} `nomic` does not exist{control}", [], [KEY])
    assert quoted.replace("  ", " ") == ": The model `nomic` does not exist"


ENCODINGS = {
    "url": quote,
    "form": quote_plus,
    "every byte": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "url twice": lambda text: quote(quote(text, safe=""), safe=""),
    "json": lambda text: json.dumps(text)[1:-1],
    "json of json": lambda text: json.dumps(json.dumps(text)),
    "code units": lambda text: "".join(f"\\u{ord(one):04x}" for one in text),
    "python": ascii,
    "html": lambda text: "".join(f"&#{ord(one)};" for one in text),
    "html names": html.escape,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "urlsafe base64": lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    "basic authorization": lambda text: "Basic " + base64.b64encode(f"user:{text}".encode()).decode(),
    "base64 in a url": lambda text: quote("a/" + base64.b64encode(text.encode()).decode(), safe=""),
    "hexadecimal": lambda text: text.encode().hex(),
    "upper case": str.upper,
    "null characters": lambda text: "\0".join(text),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("echo", [KEY, KEY[: len(KEY) // 2], KEY[len(KEY) // 2 :], KEY[3:11]])
def test_a_message_with_a_key_or_half_of_it_in_any_encoding_is_dropped(encoding, echo):
    assert safe_excerpt(f"wrong key {ENCODINGS[encoding](echo)} here", [], [KEY]) == ""


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "text", ["The patient <b>Jane</b> Roe/Smith & 2 others", "Größe: \u00e9t\u00e9 \u4f60\u597d\u4e16\u754c"]
)
def test_a_message_with_a_text_in_any_encoding_is_dropped(encoding, text):
    assert safe_excerpt(f"cannot read {ENCODINGS[encoding](text)[:180]}", ["other", text], [KEY]) == ""


def test_an_echo_of_another_plane_is_dropped():
    text = "\U0001f600\U0001f601\U0001f602" * 8
    assert safe_excerpt("cannot read " + json.dumps(text), [text], [KEY]) == ""


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=40))
def test_no_message_of_a_server_raises(message, text, secret):
    safe_excerpt(message, [text], [secret])
    safe_request_id(message, [secret])


@pytest.mark.parametrize("request_id", ["req_9f8e7d6c5b4a", "0f2c4e53-4c9f-4d2c-8d9c-1b8f2a3c4d5e", "AbC+/=.:@"])
def test_a_request_id_is_kept(request_id):
    assert safe_request_id(request_id, [KEY]) == request_id


@pytest.mark.parametrize(
    "request_id", ["", None, "two words", "a\x1b[31mb", "\n", "\u00e9", "x" * 129, KEY, quote(KEY[:8])]
)
def test_a_request_id_of_other_characters_or_with_a_secret_is_dropped(request_id):
    assert safe_request_id(request_id, [KEY]) is None


@given(st.text("abc", min_size=1, max_size=60), st.text("abc", min_size=MIN_SHARED, max_size=99), st.integers(0, 87))
def test_every_piece_of_a_long_text_is_found_wherever_it_begins(message, text, start):
    message += "z" + text[start : start + MIN_SHARED]
    shared = any(message[i : i + MIN_SHARED] in text for i in range(len(message) - MIN_SHARED + 1))
    assert (safe_excerpt(message, [text], []) == "") == shared


def test_a_message_is_quoted_only_if_its_search_in_the_texts_is_short():
    text = "cats purr " * (MAX_SEARCHED // 10)
    assert safe_excerpt("overloaded", [text], []) == ": overloaded"
    assert safe_excerpt("overloaded", [text, "x"], []) == ""
    assert safe_excerpt("overloaded", ["x" * 300_000], []) == ""
