"""Cached vectors compared with what the model gives today: a model may change under its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from embedkit_core.calls.import_vectors import MIN_COSINE, evenly_spaced
from embedkit_core.calls.lookup import CacheLookup
from embedkit_core.calls.plan import plan_call
from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import BIT_PACKED, DType
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec

# Two answers of one model differ in the last digits, which makes a number of 8 bits another one now and then, and of a
# thousand signs some: where the floats have 0.99995, 3 signs of 1024 differ.
MIN_COSINES: Mapping[DType, float] = {
    "float32": MIN_COSINE,
    "float16": MIN_COSINE,
    "int8": 0.995,
    "uint8": 0.995,
    "binary": 0.95,
    "ubinary": 0.95,
}


@dataclass(frozen=True, slots=True)
class CacheVerification:
    """How like the model's own of today some cached vectors are.

    `cached` counts the distinct texts that the cache has; `cosines` gives for the positions of those that were embedded
    anew the cosine of both vectors, of the signs where the type is binary, less where their lengths differ. Two answers
    of one model are `alike` or more: 0.999 for floats, less for types that round; what is below is another model's.
    """

    texts: int
    cached: int
    cosines: Mapping[int, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    min_cosine: float = MIN_COSINE

    @property
    def lowest(self) -> float | None:
        """The least of the cosines; None where nothing was compared."""
        return min(self.cosines.values(), default=None)

    @property
    def changed(self) -> tuple[int, ...]:
        """The positions of texts whose cached vectors are not the model's any more."""
        return tuple(position for position, cosine in self.cosines.items() if not cosine >= self.min_cosine)

    def __str__(self) -> str:
        if self.lowest is None:
            return f"none of {self.texts:,} texts is in the cache: nothing was compared"
        same = (
            "the model is the same"
            if not self.changed
            else f"{len(self.changed):,} are not the model's any more: use another cache= folder"
        )
        mean = sum(self.cosines.values()) / len(self.cosines)
        return (
            f"{len(self.cosines):,} of {self.cached:,} cached vectors embedded anew: cosine {self.lowest:.6f} at "
            f"least, {mean:.6f} on average; {same} ({self.usage})"
        )


def verify_cache(
    embedder: BaseEmbedder,
    role: InputTypeSpec,
    texts: Iterable[str],
    *,
    sample: int,
    embed_again: Callable[..., EmbeddingResult],
) -> CacheVerification:
    """Embed some of the texts that are cached once more, past the cache, and compare."""
    if embedder.tiered_cache.backend is None:
        raise ConfigurationError("verify_cache compares with the cache, and this embedder has cache=False")
    plan = plan_call(texts, role.key_prefix)
    rows = MatrixBuffer(plan.n, plan.first, role.format)
    look_up = CacheLookup(embedder, role, plan, rows)
    try:
        look_up.run()
    finally:
        look_up.close()
    if not look_up.hits or rows.matrix is None:
        return CacheVerification(plan.n, 0)
    chosen = evenly_spaced(sorted(look_up.hits), sample)
    kept = rows.matrix[plan.first[chosen]]
    fresh = embed_again([plan.texts[place] for place in chosen], input_type=role.input_type)
    for error in fresh.failed.values():
        raise error
    cosines = _cosines(kept, fresh.vectors, role.format.dtype).tolist()
    positions = plan.first[chosen].tolist()
    known = dict(zip(positions, cosines, strict=True))
    return CacheVerification(plan.n, len(look_up.hits), known, fresh.usage, MIN_COSINES[role.format.dtype])


def _cosines(one: Vectors, other: Vectors, dtype: DType) -> npt.NDArray[np.float64]:
    if one.shape != other.shape:
        return np.zeros(len(one))
    a, b = (_numbers(rows, dtype) for rows in (one, other))
    lengths = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)) ** 2
    cosines: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / np.where(lengths == 0, 1.0, lengths)
    return cosines


def _numbers(rows: Vectors, dtype: DType) -> npt.NDArray[np.float64]:
    if dtype not in BIT_PACKED:
        numbers: npt.NDArray[np.float64] = rows.astype(np.float64) - (128.0 if dtype == "uint8" else 0.0)
        return numbers
    packed: npt.NDArray[np.uint8] = rows if dtype == "ubinary" else rows.view(np.uint8) ^ np.uint8(0x80)
    return np.where(np.unpackbits(packed, axis=1), 1.0, -1.0)
