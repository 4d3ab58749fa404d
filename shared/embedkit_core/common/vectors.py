"""Formats of vectors, and their post-processing: truncation, normalization, conversion of the dtype. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

DType: TypeAlias = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Cut: TypeAlias = Literal["prefix", "centered"]

# "binary" and "ubinary" pack eight dimensions into a number, the first into the highest bit (as np.packbits does);
# "binary" is "ubinary" minus 128. Source: docs.voyageai.com, "Flexible dimensions and quantization", and
# sentence-transformers' quantize_embeddings, read 2026-11-20.
NUMPY_DTYPES: Mapping[DType, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "binary": np.dtype(np.int8),
    "ubinary": np.dtype(np.uint8),
}
BIT_PACKED = ("binary", "ubinary")
PROVIDER_QUANTIZED = ("int8", "uint8")  # never truncated: the provider's ranges depend on the dimensions
LENGTH_TOLERANCE = 1e-3  # of normalized vectors, for numbers rounded to float16
LOCAL_DTYPES = ("float16", *BIT_PACKED)  # computed from float32; int8 and uint8 need the provider's ranges
Matrix: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """Data type and number of dimensions of a vector.

    Attributes:
        dtype: Data type of the vector.
        dimensions: Number of dimensions. None until a reply shows it.
    """

    dtype: DType = "float32"
    dimensions: int | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """NumPy dtype of a row."""
        return NUMPY_DTYPES[self.dtype]

    @property
    def width(self) -> int | None:
        """Length of a row. None until a reply shows it."""
        return None if self.dimensions is None else self.width_of(self.dimensions)

    @property
    def zero(self) -> int:
        """The number that stands for 0 in a row; for the bit-packed dtypes, eight dimensions that are not above 0."""
        return {"uint8": 128, "binary": -128}.get(self.dtype, 0)

    def width_of(self, dimensions: int) -> int:
        """Return the length of a row with this many dimensions."""
        return dimensions // 8 if self.dtype in BIT_PACKED else dimensions

    def dimensions_of(self, width: int) -> int:
        """Return the number of dimensions of a row of this length."""
        return width * 8 if self.dtype in BIT_PACKED else width


FLOAT32 = VectorFormat()


@dataclass(frozen=True, slots=True)
class VectorSpace:
    """Vector space of a model, with any number of dimensions.

    Attributes:
        model: Model or family of models, as "provider:model", with "@address" if it is not the provider's own host.
        dtype: Data type of the vectors.
        digest: Digest of the options that change vectors. "" for none.
    """

    model: str
    dtype: DType
    digest: str = ""

    def name(self, dimensions: int | None) -> str:
        """Return the name of the space with this many dimensions; None for a number that is not known yet."""
        digest = f"/{self.digest}" if self.digest else ""
        return f"{self.model}/{dimensions or 'unknown'}/{self.dtype}{digest}"

    def name_of_row(self, width: int) -> str:
        """Return the name of the space of a row of this length."""
        return self.name(VectorFormat(self.dtype).dimensions_of(width))


@dataclass(frozen=True, slots=True)
class PostProcessing:
    """Local processing of rows: truncation, then normalization, then conversion of the dtype.

    Truncated float rows are normalized in float64. Bit-packed rows are truncated between bytes. A row that becomes
    bit-packed keeps the signs of its numbers.

    Attributes:
        truncate_to: Dimensions to keep. None for no truncation; shorter rows stay as they are.
        center: True if truncation subtracts the mean of the whole row first. After normalization this equals layer
            normalization.
        normalize: True if rows that are not truncated are normalized too.
        restore_length: True if rows that the server truncated must have length 1. Some servers do not normalize them.
        source: Data type of the input.
        dtype: Data type of the output.
    """

    truncate_to: int | None = None
    center: bool = False
    normalize: bool = False
    restore_length: bool = False
    source: DType = "float32"
    dtype: DType = "float32"

    def __bool__(self) -> bool:
        return self.truncate_to is not None or self.normalize or self.dtype != self.source

    def __call__(self, rows: Matrix) -> Matrix:
        """Return (n, width) rows of `source` as rows of `dtype`; a view or the input itself if nothing changes."""
        if self.source in BIT_PACKED:
            return rows if self.truncate_to is None else rows[:, : self.truncate_to // 8]
        shorter = self.truncate_to is not None and rows.shape[1] > self.truncate_to
        if shorter or self.normalize:
            rows = _normalized(rows, self.truncate_to if shorter else None, center=self.center)
        elif self.restore_length:
            rows = _with_unit_length(rows)
        if self.dtype in BIT_PACKED:
            packed = np.packbits(rows > 0, axis=1)
            return packed if self.dtype == "ubinary" else (packed ^ 0x80).view(np.int8)
        with np.errstate(over="ignore"):  # `overflowed_rows` finds them
            return rows.astype(NUMPY_DTYPES[self.dtype], copy=False)

    def must_center(self, cached: PostProcessing) -> bool:
        """Return True if rows after `cached` must still be centered, which needs the whole row."""
        return self.center and cached.truncate_to is None

    def key_parts(self) -> dict[str, Any]:
        """Return the parts of the cache key; a default value adds no part.

        The names are frozen: a changed name changes every key, and all vectors would be embedded again.
        """
        parts = {"cut": self.truncate_to, "centred": self.center, "unit": self.normalize}
        return {name: value for name, value in parts.items() if value} | (
            {"dtype": self.dtype} if self.dtype != self.source else {}
        )


def overflowed_rows(rows: Matrix) -> list[int]:
    """Return the positions of float16 rows with a number out of range; empty for other dtypes."""
    whole = rows.dtype != np.float16 or bool(np.isfinite(rows).all())
    positions: list[int] = [] if whole else np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()
    return positions


def truncation_hint(dimensions: int) -> str:
    """Return the fix for a server that does not truncate vectors itself."""
    return (
        "if the model supports shorter vectors, truncate them locally with "
        f"model_info={{'allowed_dimensions': [{dimensions}], 'cut': 'prefix'}}"
    )


def _with_unit_length(rows: Matrix) -> Matrix:
    """Return the rows with those normalized whose length is not 1; the others keep every bit."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    wrong = np.abs(lengths - 1.0) > LENGTH_TOLERANCE
    if not wrong.any():
        return rows
    unit = rows.copy()
    unit[wrong] = _normalized(rows[wrong], None, center=False)
    return unit


def _normalized(rows: Matrix, truncate_to: int | None, *, center: bool) -> npt.NDArray[np.float32]:
    wide = rows[:, :truncate_to].astype(np.float64)
    if center and truncate_to is not None:
        wide -= rows.mean(axis=1, dtype=np.float64)[:, None]
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    norms[norms == 0] = 1.0
    unit: npt.NDArray[np.float32] = (wide / norms[:, None]).astype(np.float32)
    return unit
