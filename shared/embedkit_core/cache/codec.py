"""A vector as bytes: a header that says what it is, the numbers, and a checksum that ties both to the key."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Iterable

import numpy as np

from embedkit_core.types import Entry, Vectors

# Later versions of the library must read what this one wrote, or every vector would be paid for again.
_MAGIC = b"EK"
_VERSION = 1
_TRUNCATED = 1  # flag bit 0: the text was cut to fit the model
_FIELDS = struct.Struct("<2sBBI")  # magic, version, flags, dimensions
_CHECKSUM = struct.Struct("<I")  # crc32 of the fields, the numbers and the key
_HEADER = struct.Struct("<2sBBII")  # the fields and the checksum
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size  # 12: the numbers stay aligned to four
MAX_DIMENSIONS = 1 << 20  # beyond any model; a planted row must not fill the memory
_STORED = np.dtype("<f4")
_SAME_ORDER = sys.byteorder == "little"


def encode_all(items: Iterable[tuple[bytes, Entry]]) -> list[tuple[bytes, bytes]]:
    """Give each key with the bytes of its entry that are valid under this key only.

    Raises:
        ValueError: a vector is not one row of 1 to `MAX_DIMENSIONS` finite numbers.
    """
    with np.errstate(over="ignore"):  # in `_is_finite`
        return [(key, _encode(key, entry)) for key, entry in items]


def decode_all(rows: Iterable[tuple[bytes, object]]) -> dict[bytes, Entry]:
    """Read entries back, without whatever `encode_all` did not write under its key.

    The vectors are float32 (dimensions,) in the machine's byte order, and read-only.
    """
    with np.errstate(over="ignore"):  # in `_is_finite`
        return {key: entry for key, blob in rows if (entry := _decode(key, blob)) is not None}


def _encode(key: bytes, entry: Entry) -> bytes:
    vector = np.ascontiguousarray(entry.vector, dtype=_STORED)
    if np.ndim(entry.vector) != 1 or not 0 < len(vector) <= MAX_DIMENSIONS or not _is_finite(vector):
        raise ValueError(f"a cached vector is one row of finite numbers, not an array of shape {vector.shape}")
    fields = _FIELDS.pack(_MAGIC, _VERSION, _TRUNCATED if entry.truncated else 0, len(vector))
    numbers = vector.data.cast("B")
    return b"".join((fields, _CHECKSUM.pack(_checksum(key, fields, numbers)), numbers))


def _decode(key: bytes, blob: object) -> Entry | None:
    if type(blob) is not bytes or len(blob) <= HEADER_BYTES:
        return None
    magic, version, flags, dimensions, checksum = _HEADER.unpack_from(blob)
    if magic != _MAGIC or version != _VERSION or flags & ~_TRUNCATED:
        return None
    if not 0 < dimensions <= MAX_DIMENSIONS or len(blob) != HEADER_BYTES + dimensions * _STORED.itemsize:
        return None
    if checksum != _checksum(key, blob[: _FIELDS.size], memoryview(blob)[HEADER_BYTES:]):
        return None
    vector = np.frombuffer(blob, _STORED, -1, HEADER_BYTES)  # read-only, as bytes are
    if not _is_finite(vector):
        return None
    return Entry(vector if _SAME_ORDER else _swapped(vector), flags == _TRUNCATED)


def _is_finite(vector: Vectors) -> bool:
    """Tell whether every number of one row is finite.

    The product of the row with itself is cheaper than a test of each number; it is finite only if all of them are, and
    where it is not they may just be large.
    """
    return math.isfinite(vector.dot(vector)) or bool(np.isfinite(vector).all())


def _swapped(vector: Vectors) -> Vectors:
    """Give a stored row in the machine's byte order, read-only."""
    swapped = vector.astype(np.float32)
    swapped.flags.writeable = False
    return swapped


def _checksum(key: bytes, fields: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(key, zlib.crc32(numbers, zlib.crc32(fields)))
