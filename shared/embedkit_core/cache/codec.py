"""Binary format of a cached vector: a header, the numbers, and a checksum over both and the key. No I/O."""

from __future__ import annotations

import math
import struct
import sys
import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from embedkit_core.common.types import Entry, Vectors

# Later versions of the library must read this format, or all vectors would be embedded again.
_MAGIC = b"EK"
_FORMAT_VERSION = 1
_TRUNCATED_FLAG = 1  # bit 0
_ELEMENTS = tuple(np.dtype(name) for name in ("<f4", "<f2", "i1", "u1"))  # bits 1 and 2 of the flags; append new ones
_ELEMENT_OF: dict[object, int] = {element.newbyteorder("="): n for n, element in enumerate(_ELEMENTS)}
_FIELDS = struct.Struct("<2sBBI")  # magic, version, flags, count of numbers
_CHECKSUM_BYTES = 4  # crc32 of the fields, the numbers and the key, little-endian
HEADER_BYTES = _FIELDS.size + _CHECKSUM_BYTES  # 12, so the numbers are aligned to 4 bytes
MAX_ENCODED_WIDTH = 1 << 20  # more than any model has; a forged row must not exhaust the memory
_IS_LITTLE_ENDIAN = sys.byteorder == "little"


def encode_all(items: Iterable[tuple[bytes, Entry]]) -> list[tuple[bytes, bytes]]:
    """Return each key with the bytes of its entry, which are valid under this key only.

    Raises:
        ValueError: A vector is not a row of 1 to `MAX_ENCODED_WIDTH` finite numbers.
    """
    with np.errstate(over="ignore"):  # in `_is_finite`
        return [(key, _encode(key, entry)) for key, entry in items]


def decode_all(rows: Iterable[tuple[bytes, object, *tuple[object, ...]]]) -> dict[bytes, Entry]:
    """Return the entries that `encode_all` encoded; damaged ones are omitted.

    A row has a key, a value, and possibly more that is ignored. The vectors are read-only, (width,), of their original
    dtype in the native byte order.
    """
    with np.errstate(over="ignore"):  # in `_is_finite`
        return {row[0]: entry for row in rows if (entry := _decode(row[0], row[1])) is not None}


def _encode(key: bytes, entry: Entry) -> bytes:
    element = _ELEMENT_OF.get(getattr(entry.vector, "dtype", None), 0)
    vector = np.ascontiguousarray(entry.vector, dtype=_ELEMENTS[element])
    if np.ndim(entry.vector) != 1 or not 0 < len(vector) <= MAX_ENCODED_WIDTH or not _is_finite(vector):
        raise ValueError(f"A cached vector must be a row of finite numbers (got an array of shape {vector.shape}).")
    flags = (_TRUNCATED_FLAG if entry.truncated else 0) | element << 1
    fields = _FIELDS.pack(_MAGIC, _FORMAT_VERSION, flags, len(vector))
    numbers = vector.data.cast("B")
    checksum = zlib.crc32(key, zlib.crc32(numbers, zlib.crc32(fields)))
    return b"".join((fields, checksum.to_bytes(_CHECKSUM_BYTES, "little"), numbers))


class _Header(NamedTuple):
    """What the fields of an entry say.

    Attributes:
        size: The bytes of the whole entry.
        element: The dtype of the numbers.
        is_truncated: True if the text was truncated.
        checksum: The checksum of the fields, which that of the entry continues.
    """

    size: int
    element: np.dtype[Any]
    is_truncated: bool
    checksum: int


@lru_cache(maxsize=64)
def _parse_header(fields: bytes) -> _Header | None:
    """Return what the fields say; None if no entry has them. A cache has few different ones, so they are kept."""
    magic, version, flags, dimensions = _FIELDS.unpack(fields)
    if magic != _MAGIC or version != _FORMAT_VERSION or flags >= 2 * len(_ELEMENTS):
        return None
    if not 0 < dimensions <= MAX_ENCODED_WIDTH:
        return None
    element = _ELEMENTS[flags >> 1]
    size = HEADER_BYTES + dimensions * element.itemsize
    return _Header(size, element, bool(flags & _TRUNCATED_FLAG), zlib.crc32(fields))


def _decode(key: bytes, blob: object) -> Entry | None:
    if type(blob) is not bytes or len(blob) <= HEADER_BYTES:
        return None
    header = _parse_header(blob[: _FIELDS.size])
    if header is None or header.size != len(blob):
        return None
    checksum = zlib.crc32(key, zlib.crc32(memoryview(blob)[HEADER_BYTES:], header.checksum))
    if checksum != int.from_bytes(blob[_FIELDS.size : HEADER_BYTES], "little"):
        return None
    vector = np.frombuffer(blob, header.element, -1, HEADER_BYTES)  # read-only, because bytes are
    if not _is_finite(vector):
        return None
    return Entry(vector if _IS_LITTLE_ENDIAN else _to_native_order(vector), header.is_truncated)


def _is_finite(vector: Vectors) -> bool:
    """Return True if all numbers of a row are finite.

    The dot product of the row with itself is cheaper than a test of each number. It is finite only if all numbers are;
    if it is not, the numbers may just be large.
    """
    if vector.dtype.kind != "f":
        return True
    return math.isfinite(vector.dot(vector)) or bool(np.isfinite(vector).all())


def _to_native_order(vector: Vectors) -> Vectors:
    """Return a little-endian row in the native byte order, read-only."""
    native = vector.astype(vector.dtype.newbyteorder("="))
    native.flags.writeable = False
    return native
