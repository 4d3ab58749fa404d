"""Numbers of replies: from base64 or lists to arrays, and into the order asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedkit_core.errors import BadReplyError
from embedkit_core.types import Vectors

Decode = Callable[[str], bytes]


def decoder() -> Decode:
    """Give what turns base64 into bytes, and refuses what is none with a ValueError."""
    import pybase64

    def decode(text: str) -> bytes:
        decoded: bytes = pybase64.b64decode(text, validate=True)
        return decoded

    return decode


def decoded(encoded: Sequence[Any], element: np.dtype[Any], decode: Decode) -> Vectors:
    """Give rows of base64 (little-endian) or of numbers as (n, width) of a type.

    Raises:
        BadReplyError: they are of different widths, or neither.
    """
    try:
        if not isinstance(encoded[0], str):
            return _numbers(encoded, element)
        rows = [decode(text) for text in encoded]
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("rows of different widths")
        stored = np.frombuffer(b"".join(rows), dtype=element.newbyteorder("<")).reshape(len(rows), -1)
        return stored.astype(element, copy=False)  # the same, where the machine's byte order is this one
    except (ValueError, TypeError, OverflowError):
        raise BadReplyError("the server answered vectors of different widths or in an unknown encoding") from None


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
