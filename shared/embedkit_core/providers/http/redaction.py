"""Excerpts of server messages without texts or secrets. No I/O."""

from __future__ import annotations

import binascii
import html
import re
import sys
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, unquote_plus

MAX_EXCERPT = 200  # characters of a server message that an error message may contain
MAX_SEARCHED = 250_000  # characters of texts to search for shared pieces, in 20 ms; beyond that there is no excerpt
MIN_SHARED = 12  # characters shared with a text that count as a leak
MIN_SHARED_WITH_SECRET = 6  # characters shared with a key or header
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Sequences of a terminal: CSI (colors, cursor), OSC and other strings (titles, links), and those of two characters.
ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
BACKSLASH_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|(.))", re.S)
HEX_RUN = re.compile(r"[0-9a-fA-F]{12,}")
BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{8,}")
STANDARD_ALPHABET = str.maketrans("-_", "+/")


def safe_excerpt(message: str, texts: Iterable[str], secrets: Iterable[str]) -> str:
    """Return ": " and the beginning of a server message, or "" if it contains a piece of a text or secret.

    Control characters and terminal escapes are removed. An echo is also found if it is URL-encoded, escaped as in JSON,
    Python or HTML, or in base64 or hexadecimal digits.
    """
    beginning = message[:MAX_EXCERPT]
    excerpt = printable(beginning)
    return f": {excerpt}" if excerpt and not _contains_piece(beginning, texts, secrets) else ""


def safe_request_id(request_id: str | None, secrets: Iterable[str]) -> str | None:
    """Return a server's id of a request, None if it is not an id or contains a piece of a secret.

    It is not compared with the texts, because every refusal has an id, and texts may be long.
    """
    if not request_id or REQUEST_ID.fullmatch(request_id) is None or _contains_piece(request_id, (), secrets):
        return None
    return request_id


def printable(text: str) -> str:
    """Return a text as one line without terminal escapes and characters that are not printable."""
    text = ESCAPE_SEQUENCE.sub("", text)
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _contains_piece(message: str, texts: Iterable[str], secrets: Iterable[str]) -> bool:
    """Return True if a message may repeat a piece of a text or a secret in some encoding."""
    texts, readings = list(texts), _readings(message)
    if any(_shares_piece(readings, secret, MIN_SHARED_WITH_SECRET) for secret in secrets):
        return True
    return sum(map(len, texts)) > MAX_SEARCHED or any(_shares_piece(readings, text, MIN_SHARED) for text in texts)


def _shares_piece(readings: _Readings, text: str, length: int) -> bool:
    """Return True if a message contains all of a short text, or `length` characters of a longer one."""
    folded = _folded(text)
    for spelling in {folded, folded if folded.isprintable() else _folded(printable(text))}:
        if len(spelling) < length:
            if len(spelling) > 2 and spelling in readings.joined:
                return True
        elif _shares_window(readings, spelling, length):
            return True
    return False


def _shares_window(readings: _Readings, text: str, length: int) -> bool:
    """Return True if a message contains `length` characters of a text.

    Every window of the text contains one of its blocks of half the length, which are `length - size + 1` apart. So few
    of a large text's windows are compared: those around the blocks that are in the message.
    """
    size = length // 2
    blocks, pieces = readings.pieces(size), readings.pieces(length)
    return any(
        not pieces.isdisjoint(_windows(text[max(0, at - length + size) : at + length], length))
        for at in range(0, len(text) - size + 1, length - size + 1)
        if text[at : at + size] in blocks
    )


def _windows(text: str, length: int) -> Iterator[str]:
    return (text[i : i + length] for i in range(len(text) - length + 1))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


class _Readings:
    """What a message may mean in each encoding, case-folded."""

    def __init__(self, readings: Iterable[str]) -> None:
        self._readings = {_folded(reading) for reading in readings}
        self._pieces: dict[int, frozenset[str]] = {}
        self.joined = "\n".join(self._readings)

    def pieces(self, length: int) -> frozenset[str]:
        """Return all parts of this length."""
        if length not in self._pieces:
            self._pieces[length] = frozenset(part for one in self._readings for part in _windows(one, length))
        return self._pieces[length]


def _readings(message: str) -> _Readings:
    """Decode a message in each encoding, twice because encodings are nested."""
    found = {message, printable(message)}
    for _ in range(2):
        found |= {reading for one in found for reading in _decoded(one)}
    return _Readings(found)


def _decoded(text: str) -> Iterator[str]:
    yield unquote(text)
    yield unquote_plus(text)
    yield html.unescape(text)
    unescaped = BACKSLASH_ESCAPE.sub(_unescaped, text)
    yield unescaped.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins pairs of surrogates
    yield "".join(character for character in text if character.isprintable())
    for run in HEX_RUN.findall(text):
        yield bytes.fromhex(run[: len(run) // 2 * 2]).decode(errors="replace")
        yield bytes.fromhex(run[1:][: (len(run) - 1) // 2 * 2]).decode(errors="replace")
    for run in BASE64_RUN.findall(text):
        for start in range(4):  # the characters before an encoded part may belong to the alphabet
            part = run[start:].translate(STANDARD_ALPHABET)
            yield binascii.a2b_base64(part[: len(part) // 4 * 4]).decode(errors="replace")


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    if digits:
        return chr(min(int(digits, 16), sys.maxunicode))
    return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(match[4], match[4])
