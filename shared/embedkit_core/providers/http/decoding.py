"""Decode replies: base64 or lists of numbers to arrays in the order of the texts. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embedkit_core.common.errors import BadReplyError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.types import Reply, Vectors

Decode = Callable[[str], bytes]
Check = Callable[[int], bool]  # of the bytes of a base64 row
NUMPY_FLOAT32 = np.dtype(np.float32)
MAX_MODEL_LENGTH = 200


class UnreadableEncodingError(BadReplyError):
    """The vectors of a reply are missing, or base64 of an unknown dtype; the server may return them as numbers."""


class ReplyReader:
    """Reads replies of HTTP providers. The packages it needs are imported on creation."""

    def __init__(self) -> None:
        import pybase64
        import pydantic_core

        self._pybase64 = pybase64
        self._json = pydantic_core

    def load(self, body: bytes) -> Any:
        """Return the value of JSON.

        Raises:
            ValueError: The body is not JSON, or has NaN or Infinity.
        """
        return self._json.from_json(body, allow_inf_nan=False)

    def dump(self, value: Any) -> bytes:
        """Return a value as JSON."""
        return self._json.to_json(value)

    def parse(self, body: bytes) -> dict[str, Any]:
        """Return the JSON object of a reply.

        Raises:
            BadReplyError: The body is not a JSON object.
        """
        try:
            reply = self.load(body)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise not_a_list()
        return reply

    def read_data(
        self,
        reply: Mapping[str, Any],
        n_texts: int,
        element: np.dtype[Any],
        *token_fields: str,
        accepts: Check | None = None,
    ) -> Reply:
        """Read `{"data": [{"embedding": ..., "index": ...}], "usage": {...}, "model": ...}`.

        Args:
            reply: The reply, parsed.
            n_texts: Number of texts in the request.
            element: Dtype of the vectors.
            *token_fields: Fields of `usage` with the billed tokens; the first one present is used.
            accepts: As for `decode_rows`.

        Raises:
            BadReplyError: The reply has another shape, or as for `read_rows`.
        """
        try:
            encoded = [row["embedding"] for row in reply["data"]]
            indices = [row.get("index") for row in reply["data"]]
        except (KeyError, TypeError, AttributeError):
            raise not_a_list() from None
        tokens = read_tokens(reply.get("usage"), *token_fields)
        decoded = self.read_rows(encoded, n_texts, element, tokens, indices=indices, accepts=accepts)
        return replace(decoded, model=read_model(reply))

    def read_rows(
        self,
        encoded: Sequence[Any],
        n_texts: int,
        element: np.dtype[Any],
        tokens: int | None,
        *,
        indices: Sequence[Any] = (),
        accepts: Check | None = None,
    ) -> Reply:
        """Decode rows of base64 or numbers.

        Returns:
            The vectors, (n_texts, width) of dtype `element`, in the order of the texts.

        Raises:
            BadReplyError: A row is missing or cannot be decoded. Its `tokens` are those of the reply.
        """
        try:
            if not encoded and n_texts:
                raise UnreadableEncodingError(f"Server returned no vectors for {count_noun(n_texts, 'text')}")
            if len(encoded) != n_texts:
                raise BadReplyError(
                    f"Server returned {count_noun(len(encoded), 'vector')} for {count_noun(n_texts, 'text')}"
                )
            vectors = decode_rows(encoded, element, self._decode, accepts)
            return Reply(reorder_by_index(vectors, indices), tokens)
        except BadReplyError as error:
            error.tokens = tokens
            raise

    def _decode(self, text: str) -> bytes:
        decoded: bytes = self._pybase64.b64decode(text, validate=True)
        return decoded


def not_a_list() -> BadReplyError:
    """Return the error for a reply of another shape."""
    return BadReplyError("Server response is not a list of embeddings")


def decode_rows(
    encoded: Sequence[Any], element: np.dtype[Any], decode: Decode, accepts: Check | None = None
) -> Vectors:
    """Decode rows of base64 (little-endian) or numbers.

    Args:
        encoded: The rows.
        element: Dtype of the result.
        decode: Decodes base64.
        accepts: Returns True if base64 with so many bytes per row is of dtype `element`; None if it always is.

    Returns:
        The rows, (n, width) of dtype `element`.

    Raises:
        UnreadableEncodingError: The base64 may be of another dtype.
        BadReplyError: The rows have different widths, or are neither base64 nor numbers.
    """
    try:
        if not isinstance(encoded[0], str):
            return _from_numbers(encoded, element)
        rows = [decode(text) for text in encoded]
        n_bytes = len(rows[0])
        if any(len(row) != n_bytes for row in rows):
            raise ValueError("rows of different widths")
        if accepts is None or accepts(n_bytes):
            # Without a copy on a little-endian machine.
            vectors = np.frombuffer(b"".join(rows), dtype=element.newbyteorder("<")).reshape(len(rows), -1)
            return vectors.astype(element, copy=False)
    except (ValueError, TypeError, OverflowError, struct.error):
        raise BadReplyError("Server returned vectors of different widths or in an unknown encoding") from None
    raise UnreadableEncodingError(f"Server returned base64 of an unknown type or width ({n_bytes} bytes per vector)")


def _from_numbers(rows: Sequence[Any], element: np.dtype[Any]) -> Vectors:
    if element.kind == "f":
        if isinstance(next(iter(rows[0]), None), bool):
            raise ValueError("not numbers")
        pack = struct.Struct(f"{len(rows[0])}d").pack  # three times as fast as an array of lists
        array = np.frombuffer(b"".join([pack(*row) for row in rows])).reshape(len(rows), -1)
        with np.errstate(over="ignore"):  # infinity is an error of the reply
            return array.astype(element)
    array, limits = np.array(rows), np.iinfo(element)
    if array.dtype.kind not in "iu" or array.min() < limits.min or array.max() > limits.max:
        raise ValueError("not numbers of this dtype")
    return array.astype(element)


def reorder_by_index(vectors: Vectors, indices: Sequence[Any]) -> Vectors:
    """Return rows in the order of their `index`; without indices, unchanged.

    Raises:
        BadReplyError: An index is missing or repeated.
    """
    if all(index is None for index in indices) or list(indices) == list(range(len(indices))):
        return vectors
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(len(indices))):
        raise BadReplyError("Server returned a missing or repeated index, so vectors cannot be matched to texts")
    ordered = np.empty_like(vectors)
    ordered[list(indices)] = vectors
    return ordered


def read_tokens(usage: object, *names: str) -> int | None:
    """Return the first of these counts in a reply's usage, None if it is missing or invalid."""
    count = next((usage[name] for name in names if name in usage), None) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None


def read_model(reply: Mapping[str, Any]) -> str | None:
    """Return the name of the model that a reply states, None if it is missing or is no name."""
    model = reply.get("model")
    return model if isinstance(model, str) and 0 < len(model) <= MAX_MODEL_LENGTH else None
