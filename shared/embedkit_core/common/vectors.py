"""What a row of numbers is, and what is done to one: cut, brought to unit length, brought into another type. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

DType: TypeAlias = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Cut: TypeAlias = Literal["prefix", "centered"]

# The numbers of each type. The binary ones hold eight dimensions in a number, the first in its highest bit (as
# np.packbits has them); "binary" is "ubinary" less 128. Source: docs.voyageai.com, "Flexible dimensions and
# quantization", and sentence-transformers' quantize_embeddings, read 2026-11-20.
NUMPY_DTYPES: Mapping[DType, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "binary": np.dtype(np.int8),
    "ubinary": np.dtype(np.uint8),
}
BIT_PACKED = ("binary", "ubinary")
PROVIDER_QUANTIZED = ("int8", "uint8")  # never cut: their ranges are the provider's, and differ with the dimensions
LOCAL_DTYPES = (
    "float16",
    *BIT_PACKED,
)  # from float32, for every model; the other types need ranges that its provider has
Matrix: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """The type of a row's numbers and how many dimensions it has; None until a reply tells."""

    dtype: DType = "float32"
    dimensions: int | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The type of a number in a row."""
        return NUMPY_DTYPES[self.dtype]

    @property
    def width(self) -> int | None:
        """How many numbers a row has."""
        return None if self.dimensions is None else self.width_of(self.dimensions)

    def width_of(self, dimensions: int) -> int:
        """Give how many numbers a row of this type has for so many dimensions."""
        return dimensions // 8 if self.dtype in BIT_PACKED else dimensions

    def dimensions_of(self, width: int) -> int:
        """Give how many dimensions a row of so many numbers has."""
        return width * 8 if self.dtype in BIT_PACKED else width


FLOAT32 = VectorFormat()


@dataclass(frozen=True, slots=True)
class PostProcessing:
    """What is done to rows: cut to the first `cut` dimensions, brought to unit length, made into another type.

    A row that is not longer than `cut` stays as long as it is. Rows of floats that are cut are brought to unit length
    in float64; `centred` ones lose the mean of the whole row first, which is layer normalisation but for a factor that
    the unit length takes away. Packed rows are cut between their bytes. The numbers of a row that becomes packed are
    its signs.
    """

    truncate_to: int | None = None
    center: bool = False
    normalize: bool = False
    source: DType = "float32"
    dtype: DType = "float32"

    def __bool__(self) -> bool:
        return self.truncate_to is not None or self.normalize or self.dtype != self.source

    def __call__(self, rows: Matrix) -> Matrix:
        """Give (n, width) rows of `source` as rows of `dtype`, which nobody else holds or which are the same."""
        if self.source in BIT_PACKED:
            return rows if self.truncate_to is None else rows[:, : self.truncate_to // 8]
        shorter = self.truncate_to is not None and rows.shape[1] > self.truncate_to
        if shorter or self.normalize:
            rows = _normalized(rows, self.truncate_to if shorter else None, centred=self.center)
        if self.dtype in BIT_PACKED:
            packed = np.packbits(rows > 0, axis=1)
            return packed if self.dtype == "ubinary" else (packed ^ 0x80).view(np.int8)
        with np.errstate(over="ignore"):  # what does not fit is found by `overflowed_rows`
            return rows.astype(NUMPY_DTYPES[self.dtype], copy=False)

    def must_center(self, kept: PostProcessing) -> bool:
        """Tell whether rows that were `kept` after another finish are yet to be centred, which takes the whole row."""
        return self.center and kept.truncate_to is None

    def key_parts(self) -> dict[str, Any]:
        """Give what of it a key covers; what is left at its neutral value is not there."""
        given = {"cut": self.truncate_to, "centred": self.center, "unit": self.normalize}
        return {name: value for name, value in given.items() if value} | (
            {"dtype": self.dtype} if self.dtype != self.source else {}
        )


def overflowed_rows(rows: Matrix) -> list[int]:
    """Give the places of rows with a number that did not fit into float16; finite rows of another type have none."""
    whole = rows.dtype != np.float16 or bool(np.isfinite(rows).all())
    places: list[int] = [] if whole else np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()
    return places


def truncation_hint(dimensions: int) -> str:
    """Say how to have shorter vectors from a server that does not cut them itself."""
    return (
        f"if the model is trained to be cut, have that done here: model_info={{'allowed_dimensions': [{dimensions}], "
        "'cut': 'prefix'}"
    )


def _normalized(rows: Matrix, cut: int | None, *, centred: bool) -> npt.NDArray[np.float32]:
    wide = rows[:, :cut].astype(np.float64)
    if centred and cut is not None:
        wide -= rows.mean(axis=1, dtype=np.float64)[:, None]
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    lengths[lengths == 0] = 1.0
    unit: npt.NDArray[np.float32] = (wide / lengths[:, None]).astype(np.float32)
    return unit
