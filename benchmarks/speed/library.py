"""The corpus on the server: the encoded row of each text."""

import base64
from collections.abc import Sequence
from typing import Any

import orjson

from benchmarks.speed.corpus import count_tokens, make_more_texts, make_texts, vector_of

MAX_ROWS = 2048
OPENING = b'{"object":"embedding","index":%d,"embedding":'
OPEN_BASE64 = [(b'"},' if index else b"") + OPENING % index + b'"' for index in range(MAX_ROWS)]
OPEN_FLOATS = [(b"]}," if index else b"") + OPENING % index + b"[" for index in range(MAX_ROWS)]


class Library:
    """Texts by number: those of the corpus, and others from their first request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._texts: list[str] = []
        self._numbers: dict[str, int] = {}
        self._base64: list[bytes] = []
        self._floats: list[bytes] = []
        self._by_tokens: dict[tuple[int, ...], int] = {}
        for text in make_texts():
            self._add(text)

    def _add(self, text: str) -> int:
        self._numbers[text] = number = len(self._texts)
        self._texts.append(text)
        self.tokens.append(count_tokens(text))
        self._base64.append(base64.b64encode(vector_of(text).tobytes()))
        if self._floats:
            self._floats.append(_as_floats(text))
        return number

    def number_of(self, text: str | list[int]) -> int:
        """Return the number of a text, or of the text with these tokens."""
        if isinstance(text, str):
            number = self._numbers.get(text)
            return self._add(text) if number is None else number
        number = self._by_tokens.get(tuple(text))
        return self.number_of(_encoding().decode(text)) if number is None else number

    def prepare_floats(self) -> None:
        """Encode all rows as JSON numbers before the measurement."""
        if not self._floats:
            self._floats = [_as_floats(text) for text in self._texts]

    def prepare_tokens(self) -> None:
        """Index all texts by their tokens, for clients that send tokens."""
        if not self._by_tokens:
            encoded = _encoding().encode_ordinary_batch(self._texts)
            self._by_tokens = {tuple(tokens): number for number, tokens in enumerate(encoded)}

    def prepare_more(self) -> None:
        """Encode the rows of the additional texts before the measurement."""
        for text in make_more_texts():
            self.number_of(text)

    def reply(self, numbers: Sequence[int], *, as_base64: bool, tokens: int) -> bytes:
        """Return the body of an answer."""
        if not as_base64:
            self.prepare_floats()
        rows = self._base64 if as_base64 else self._floats
        parts: list[Any] = [None] * (2 * len(numbers))
        parts[::2] = (OPEN_BASE64 if as_base64 else OPEN_FLOATS)[: len(numbers)]
        parts[1::2] = [rows[number] for number in numbers]
        end = b'"}' if as_base64 else b"]}"
        tail = b'],"model":"text-embedding-3-small","usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (tokens, tokens)
        return b"".join([b'{"object":"list","data":[', *parts, end, tail])

    def __len__(self) -> int:
        return len(self._texts)


def _as_floats(text: str) -> bytes:
    return orjson.dumps(vector_of(text), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _encoding() -> Any:
    import tiktoken

    return tiktoken.get_encoding("cl100k_base")
