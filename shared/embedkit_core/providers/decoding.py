"""Numbers of replies: from base64 or lists to arrays, and into the order asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedkit_core.errors import BadReplyError
from embedkit_core.types import Vectors

Decode = Callable[[str], bytes]
FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16))
SAMPLE = 8  # rows that are looked at for what they are


class OtherEncodingError(BadReplyError):
    """A reply in an encoding that cannot be told from its numbers."""


def decoder() -> Decode:
    """Give what turns base64 into bytes, and refuses what is none with a ValueError."""
    import pybase64

    def decode(text: str) -> bytes:
        decoded: bytes = pybase64.b64decode(text, validate=True)
        return decoded

    return decode


def decoded(encoded: Sequence[Any], element: np.dtype[Any], decode: Decode, widths: Sequence[int] = ()) -> Vectors:
    """Give rows of base64 (little-endian) or of numbers as (n, width) of a type.

    Base64 of float64 or float16 is read in place of float32 where the `widths` that a row may have tell so.

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
            if not _is_odd(found[:SAMPLE]):
                return found.astype(element, copy=False)
    except (ValueError, TypeError, OverflowError):
        raise BadReplyError("the server answered vectors of different widths or in an unknown encoding") from None
    raise OtherEncodingError("the server answered base64 that is not of float32")


def _read(joined: bytes, kind: np.dtype[Any], n: int) -> Vectors:
    """Read little-endian numbers; the same array, where the machine's byte order is this one."""
    return np.frombuffer(joined, dtype=kind.newbyteorder("<")).reshape(n, -1).astype(kind, copy=False)


def _kinds(n_bytes: int, widths: Sequence[int]) -> list[np.dtype[Any]]:
    """Name the types that rows of so many bytes may be of, float32 first; that alone where no width is known to fit."""
    fitting = [kind for kind in FLOATS if n_bytes % kind.itemsize == 0 and n_bytes // kind.itemsize in widths]
    return fitting or [FLOATS[0]]


def _is_odd(rows: Vectors) -> bool:
    """Tell whether numbers are none of a vector's: those of another type, read as these, are tiny, huge or none.

    Where half of them are meaningless, as in float64 read as float32, at least a fourth of all shows it.
    """
    with np.errstate(invalid="ignore"):
        sizes = np.abs(rows.astype(np.float64))
        strange = ~((sizes > 1e-9) & (sizes < 1e6)) & (sizes != 0)
    return bool(np.count_nonzero(strange) > 0.15 * strange.size)


def _numbers(rows: Sequence[Any], element: np.dtype[Any]) -> Vectors:
    if element.kind == "f":
        return np.array(rows, dtype=element)
    whole = np.array(rows)
    limits = np.iinfo(element)
    if whole.dtype.kind not in "iu" or whole.min() < limits.min or whole.max() > limits.max:
        raise ValueError("not whole numbers of this type")
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
