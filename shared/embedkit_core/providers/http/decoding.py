"""Numbers of replies: from base64 or lists to arrays, and into the order asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedkit_core.common.errors import BadReplyError
from embedkit_core.common.types import Reply, Vectors

Decode = Callable[[str], bytes]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))
SAMPLE_ROWS = 8  # rows that are looked at for what they are


class OtherEncodingError(BadReplyError):
    """A reply in an encoding that cannot be told from its numbers."""


class ReplyReader:
    """Reads the replies of HTTP providers; the packages it needs are imported when one is made."""

    def __init__(self) -> None:
        import orjson
        import pybase64

        self.json = orjson
        self._pybase64 = pybase64

    def read_data(
        self, body: bytes, n_texts: int, element: np.dtype[Any], *token_fields: str, widths: Sequence[int] = ()
    ) -> Reply:
        """Read `{"data": [{"embedding": ..., "index": ...}], "usage": {...}}`; the tokens are the first of the fields.

        Raises:
            BadReplyError: The body has another shape, or as for `read_rows`.
        """
        try:
            reply = self.json.loads(body)
            encoded = [row["embedding"] for row in reply["data"]]
            indices = [row.get("index") for row in reply["data"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadReplyError("the server answered something that is not a list of embeddings") from None
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
        """Return rows of base64 or of numbers as vectors in the order of the texts.

        Raises:
            BadReplyError: A row is missing or cannot be read; its `tokens` are those of the reply.
        """
        try:
            if len(encoded) != n_texts:
                raise BadReplyError(f"the server answered {len(encoded)} vectors for {n_texts} texts")
            return Reply(in_order(decoded(encoded, element, self._decode, widths), indices), tokens)
        except BadReplyError as error:
            error.tokens = tokens
            raise

    def _decode(self, text: str) -> bytes:
        decoded: bytes = self._pybase64.b64decode(text, validate=True)
        return decoded


def decoded(encoded: Sequence[Any], element: np.dtype[Any], decode: Decode, widths: Sequence[int] = ()) -> Vectors:
    """Give rows of base64 (little-endian) or of numbers as (n, width) of a type.

    Base64 of float64 or float16 is read as such where it is not plausible as float32, and has one of the `widths` that
    a row may have. What is plausible as float32 is that, of whatever width.

    Raises:
        OtherEncodingError: it is base64 of something that cannot be read.
        BadReplyError: they are of different widths, or neither.
    """
    try:
        if not isinstance(encoded[0], str):
            return _numbers(encoded, element)
        rows = [decode(text) for text in encoded]
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("rows of different widths")
        joined = b"".join(rows)
        if element != FLOATS[0]:
            return _read(joined, element, len(rows))
        for kind in _kinds(len(rows[0]), widths):
            found = _read(joined, kind, len(rows))
            if not _is_odd(found[:SAMPLE_ROWS]):
                return found.astype(element, copy=False)
    except (ValueError, TypeError, OverflowError):
        raise BadReplyError("the server answered vectors of different widths or in an unknown encoding") from None
    raise OtherEncodingError("the server answered base64 that is not of float32")


def _read(joined: bytes, kind: np.dtype[Any], n: int) -> Vectors:
    """Read little-endian numbers; the same array, where the machine's byte order is this one."""
    return np.frombuffer(joined, dtype=kind.newbyteorder("<")).reshape(n, -1).astype(kind, copy=False)


def _kinds(n_bytes: int, widths: Sequence[int]) -> list[np.dtype[Any]]:
    """Name the types that rows of so many bytes may be of: float32, then those that have a width that is known."""
    usual = FLOATS[0]
    fitting = [kind for kind in FLOATS[1:] if n_bytes % kind.itemsize == 0 and n_bytes // kind.itemsize in widths]
    return fitting if fitting and n_bytes % usual.itemsize else [usual, *fitting]


def _is_odd(rows: Vectors) -> bool:
    """Tell whether numbers are none of a vector's: they were of another type, and are read as of this one.

    Where half of them are meaningless, as in float64 read as float32, at least a fourth of all is tiny, huge or none.
    Where the other type holds numbers of less precision than it has, every other one is 0. Float16 read as float32, and
    float32 as float64, gives about the eighth power of each: they lie far apart. Of a normal distribution 1 in 400 is
    more than 256 times smaller than the median, and none as much larger.
    """
    if not rows.any():
        return False
    if not rows[:, ::2].any():
        return True
    with np.errstate(invalid="ignore"):  # not every pattern of bits is a number
        sizes = np.abs(rows[rows != 0].astype(np.float64))
    sound = sizes[(sizes > 1e-9) & (sizes < 1e6)]
    middle = np.median(sound) if sound.size else 1.0
    n_near = np.count_nonzero((sound > middle / 256) & (sound < middle * 256))
    return bool(sizes.size - n_near > 0.15 * rows.size)


def _numbers(rows: Sequence[Any], element: np.dtype[Any]) -> Vectors:
    whole = np.array(rows)
    if element.kind == "f" and whole.dtype.kind in "iuf":
        return whole.astype(element)
    limits = np.iinfo(element)
    if whole.dtype.kind not in "iu" or whole.min() < limits.min or whole.max() > limits.max:
        raise ValueError("not numbers of this type")
    return whole.astype(element)


def in_order(vectors: Vectors, indices: Sequence[Any]) -> Vectors:
    """Put rows in the order asked by their `index`; where no row has one, position counts.

    Raises:
        BadReplyError: an index is missing or repeated.
    """
    if all(index is None for index in indices) or list(indices) == list(range(len(indices))):
        return vectors
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(len(indices))):
        raise BadReplyError("the server answered a missing or a repeated index: which vector is whose is unknown")
    ordered = np.empty_like(vectors)
    ordered[list(indices)] = vectors
    return ordered


def read_tokens(usage: object, *names: str) -> int | None:
    """Give the first of these counts that a reply's usage has; None where it says nothing that can be believed."""
    found = next((usage[name] for name in names if name in usage), None) if isinstance(usage, dict) else None
    return found if type(found) is int and found >= 0 else None
