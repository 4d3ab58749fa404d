"""Decode replies: base64 or lists of numbers to arrays in the order of the texts. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedkit_core.common.errors import BadReplyError
from embedkit_core.common.types import Reply, Vectors

Decode = Callable[[str], bytes]
NUMPY_FLOAT32 = np.dtype(np.float32)
OTHER_FLOATS = (np.dtype(np.float64), np.dtype(np.float16))
SAMPLE_ROWS = 8  # rows that are checked for plausible values


class UnknownEncodingError(BadReplyError):
    """Base64 in a reply does not decode to plausible floats."""


class ReplyReader:
    """Reads replies of HTTP providers. The packages it needs are imported on creation."""

    def __init__(self) -> None:
        import orjson
        import pybase64

        self.json = orjson
        self._pybase64 = pybase64

    def read_data(
        self, body: bytes, n_texts: int, element: np.dtype[Any], *token_fields: str, widths: Sequence[int] = ()
    ) -> Reply:
        """Read `{"data": [{"embedding": ..., "index": ...}], "usage": {...}}`.

        Args:
            body: The reply as bytes.
            n_texts: Number of texts in the request.
            element: Dtype of the vectors.
            *token_fields: Fields of `usage` with the billed tokens; the first one present is used.
            widths: Numbers that a row may have; empty if unknown.

        Raises:
            BadReplyError: The body has another shape, or as for `read_rows`.
        """
        try:
            reply = self.json.loads(body)
            encoded = [row["embedding"] for row in reply["data"]]
            indices = [row.get("index") for row in reply["data"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError("Server response is not a list of embeddings") from None
        tokens = read_tokens(reply.get("usage"), *token_fields)
        return self.read_rows(encoded, n_texts, element, tokens, indices=indices, widths=widths)

    def read_rows(
        self,
        encoded: Sequence[Any],
        n_texts: int,
        element: np.dtype[Any],
        tokens: int | None,
        *,
        indices: Sequence[Any] = (),
        widths: Sequence[int] = (),
    ) -> Reply:
        """Decode rows of base64 or numbers.

        Returns:
            The vectors, (n_texts, width) of dtype `element`, in the order of the texts.

        Raises:
            BadReplyError: A row is missing or cannot be decoded. Its `tokens` are those of the reply.
        """
        try:
            if len(encoded) != n_texts:
                raise BadReplyError(f"Server returned {len(encoded)} vectors for {n_texts} texts")
            vectors = decode_rows(encoded, element, self._decode, widths)
            return Reply(reorder_by_index(vectors, indices), tokens)
        except BadReplyError as error:
            error.tokens = tokens
            raise

    def _decode(self, text: str) -> bytes:
        decoded: bytes = self._pybase64.b64decode(text, validate=True)
        return decoded


def decode_rows(encoded: Sequence[Any], element: np.dtype[Any], decode: Decode, widths: Sequence[int] = ()) -> Vectors:
    """Decode rows of base64 (little-endian) or numbers.

    Base64 that is plausible as float32 is float32, of any width. Other base64 is float64 or float16 if a row of that
    dtype has one of the `widths`.

    Returns:
        The rows, (n, width) of dtype `element`.

    Raises:
        UnknownEncodingError: The base64 is of no known dtype.
        BadReplyError: The rows have different widths, or are neither base64 nor numbers.
    """
    try:
        if not isinstance(encoded[0], str):
            return _from_numbers(encoded, element)
        rows = [decode(text) for text in encoded]
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("rows of different widths")
        joined = b"".join(rows)
        if element != NUMPY_FLOAT32:
            return _from_bytes(joined, element, len(rows))
        for dtype in _candidate_dtypes(len(rows[0]), widths):
            vectors = _from_bytes(joined, dtype, len(rows))
            if _is_plausible(vectors[:SAMPLE_ROWS]):
                return vectors.astype(element, copy=False)
    except (ValueError, TypeError, OverflowError):
        raise BadReplyError("Server returned vectors of different widths or in an unknown encoding") from None
    raise UnknownEncodingError("Server returned base64 that is not float32")


def _from_bytes(joined: bytes, dtype: np.dtype[Any], n: int) -> Vectors:
    """Return n rows of little-endian numbers; without a copy on a little-endian machine."""
    return np.frombuffer(joined, dtype=dtype.newbyteorder("<")).reshape(n, -1).astype(dtype, copy=False)


def _candidate_dtypes(n_bytes: int, widths: Sequence[int]) -> list[np.dtype[Any]]:
    """Return the dtypes that a row of n_bytes may have: float32, then those that result in one of the widths."""
    fitting = [dtype for dtype in OTHER_FLOATS if n_bytes % dtype.itemsize == 0 and n_bytes // dtype.itemsize in widths]
    return fitting if fitting and n_bytes % NUMPY_FLOAT32.itemsize else [NUMPY_FLOAT32, *fitting]


def _is_plausible(rows: Vectors) -> bool:
    """Return False if the bytes of the rows are probably of another dtype.

    - Float64 read as float32: half of the values are meaningless, and at least a quarter of all values is tiny, huge
      or not finite. If the float64 values have float32 precision or less, every other value is 0.
    - Float16 read as float32, or float32 as float64: each value is about the eighth power of the real one, so the
      values are far apart. In a normal distribution, 1 value in 400 is more than 256 times smaller than the median,
      and none is 256 times larger.
    """
    if not rows.any():
        return True
    if not rows[:, ::2].any():
        return False
    with np.errstate(invalid="ignore"):  # some bit patterns are NaN
        sizes = np.abs(rows[rows != 0].astype(np.float64))
    sound = sizes[(sizes > 1e-9) & (sizes < 1e6)]
    median = np.median(sound) if sound.size else 1.0
    n_near = np.count_nonzero((sound > median / 256) & (sound < median * 256))
    return bool(sizes.size - n_near <= 0.15 * rows.size)


def _from_numbers(rows: Sequence[Any], element: np.dtype[Any]) -> Vectors:
    array = np.array(rows)
    if element.kind == "f" and array.dtype.kind in "iuf":
        return array.astype(element)
    limits = np.iinfo(element)
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
