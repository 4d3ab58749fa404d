"""A vector as bytes: a header that says what it is, the numbers, and a checksum that ties both to the key."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from embedkit_core.types import Entry

# Later versions of the library must read what this one wrote, or every vector would be paid for again.
_MAGIC = b"EK"
_VERSION = 1
_TRUNCATED = 1  # flag bit 0: the text was cut to fit the model
_FIELDS = struct.Struct("<2sBBI")  # magic, version, flags, dimensions
_CHECKSUM = struct.Struct("<I")  # crc32 of the fields, the numbers and the key
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size  # 12: the numbers stay aligned to four
MAX_DIMENSIONS = 1 << 20  # beyond any model; a planted row must not fill the memory
_STORED = np.dtype("<f4")


def encode(key: bytes, entry: Entry) -> bytes:
    """Give the bytes of an entry that are valid under this key only.

    Raises:
        ValueError: the vector is not one row of 1 to `MAX_DIMENSIONS` finite numbers.
    """
    vector = np.asarray(entry.vector, dtype=_STORED)
    if vector.ndim != 1 or not 0 < len(vector) <= MAX_DIMENSIONS or not np.isfinite(vector).all():
        raise ValueError(f"a cached vector is one row of finite numbers, not an array of shape {vector.shape}")
    fields = _FIELDS.pack(_MAGIC, _VERSION, _TRUNCATED if entry.truncated else 0, len(vector))
    numbers = vector.tobytes()
    return b"".join((fields, _CHECKSUM.pack(_checksum(key, fields, numbers)), numbers))


def decode(key: bytes, blob: object) -> Entry | None:
    """Read an entry back; None for whatever `encode` did not write under this key.

    The vector is float32 (dimensions,) in the machine's byte order, and read-only.
    """
    if type(blob) is not bytes or len(blob) <= HEADER_BYTES:
        return None
    fields, numbers = blob[: _FIELDS.size], memoryview(blob)[HEADER_BYTES:]
    magic, version, flags, dimensions = _FIELDS.unpack(fields)
    if magic != _MAGIC or version != _VERSION or flags & ~_TRUNCATED:
        return None
    if not 0 < dimensions <= MAX_DIMENSIONS or len(numbers) != dimensions * _STORED.itemsize:
        return None
    if _CHECKSUM.unpack_from(blob, _FIELDS.size)[0] != _checksum(key, fields, numbers):
        return None
    stored = np.frombuffer(blob, dtype=_STORED, offset=HEADER_BYTES)
    if not np.isfinite(stored).all():
        return None
    vector = stored.astype(np.float32, copy=False)
    vector.flags.writeable = False
    return Entry(vector, bool(flags & _TRUNCATED))


def _checksum(key: bytes, fields: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(key, zlib.crc32(numbers, zlib.crc32(fields)))
