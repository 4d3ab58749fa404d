"""A vector as bytes: a header that says what it is, the numbers, and a checksum that ties both to the key."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Iterable

import numpy as np

from embedkit_core.common.types import Entry, Vectors

# Later versions of the library must read what this one wrote, or every vector would be paid for again.
_MAGIC = b"EK"
_VERSION = 1
_TRUNCATED = 1  # flag bit 0: the text was cut to fit the model
_ELEMENTS = tuple(np.dtype(name) for name in ("<f4", "<f2", "i1", "u1"))  # flag bits 1 and 2; a new one goes last
_ELEMENT_OF: dict[object, int] = {element.newbyteorder("="): n for n, element in enumerate(_ELEMENTS)}
_FIELDS = struct.Struct("<2sBBI")  # magic, version, flags, how many numbers
_CHECKSUM = struct.Struct("<I")  # crc32 of the fields, the numbers and the key
_HEADER = struct.Struct("<2sBBII")  # the fields and the checksum
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size  # 12: the numbers stay aligned to four
MAX_DIMENSIONS = 1 << 20  # beyond any model; a planted row must not fill the memory
_SAME_ORDER = sys.byteorder == "little"


def encode_all(items: Iterable[tuple[bytes, Entry]]) -> list[tuple[bytes, bytes]]:
    """Give each key with the bytes of its entry that are valid under this key only.

    Raises:
        ValueError: a vector is not one row of 1 to `MAX_DIMENSIONS` finite numbers of a type that is kept.
    """
    with np.errstate(over="ignore"):  # in `_is_finite`
        return [(key, _encode(key, entry)) for key, entry in items]


def decode_all(rows: Iterable[tuple[bytes, object]]) -> dict[bytes, Entry]:
    """Read entries back, without whatever `encode_all` did not write under its key.

    The vectors are (width,) of the type they were written in, in the machine's byte order, and read-only.
    """
    with np.errstate(over="ignore"):  # in `_is_finite`
        return {key: entry for key, blob in rows if (entry := _decode(key, blob)) is not None}


def _encode(key: bytes, entry: Entry) -> bytes:
    element = _ELEMENT_OF.get(getattr(entry.vector, "dtype", None), 0)
    vector = np.ascontiguousarray(entry.vector, dtype=_ELEMENTS[element])
    if np.ndim(entry.vector) != 1 or not 0 < len(vector) <= MAX_DIMENSIONS or not _is_finite(vector):
        raise ValueError(f"a cached vector is one row of finite numbers, not an array of shape {vector.shape}")
    flags = (_TRUNCATED if entry.truncated else 0) | element << 1
    fields = _FIELDS.pack(_MAGIC, _VERSION, flags, len(vector))
    numbers = vector.data.cast("B")
    return b"".join((fields, _CHECKSUM.pack(_checksum(key, fields, numbers)), numbers))


def _decode(key: bytes, blob: object) -> Entry | None:
    if type(blob) is not bytes or len(blob) <= HEADER_BYTES:
        return None
    magic, version, flags, dimensions, checksum = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION or flags >= 2 * len(_ELEMENTS):
        return None
    element = _ELEMENTS[flags >> 1]
    if not 0 < dimensions <= MAX_DIMENSIONS or len(blob) != HEADER_BYTES + dimensions * element.itemsize:
        return None
    if checksum != _checksum(key, blob[: _FIELDS.size], memoryview(blob)[HEADER_BYTES:]):
        return None
    vector = np.frombuffer(blob, element, -1, HEADER_BYTES)  # read-only, as bytes are
    if not _is_finite(vector):
        return None
    return Entry(vector if _SAME_ORDER else _swapped(vector), bool(flags & _TRUNCATED))


def _is_finite(vector: Vectors) -> bool:
    """Tell whether every number of one row is finite.

    The product of the row with itself is cheaper than a test of each number; it is finite only if all of them are, and
    where it is not they may just be large.
    """
    if vector.dtype.kind != "f":
        return True
    return math.isfinite(vector.dot(vector)) or bool(np.isfinite(vector).all())


def _swapped(vector: Vectors) -> Vectors:
    """Give a stored row in the machine's byte order, read-only."""
    swapped = vector.astype(vector.dtype.newbyteorder("="))
    swapped.flags.writeable = False
    return swapped


def _checksum(key: bytes, fields: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(key, zlib.crc32(numbers, zlib.crc32(fields)))
