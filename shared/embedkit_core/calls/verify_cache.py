"""Compare cached vectors with new ones: a model may change under its name."""

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
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.common.vectors import BIT_PACKED, DType
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec

# Two replies of one model differ in the last digits, which sometimes changes an 8-bit value or a sign: at a cosine of
# 0.99995 of the floats, 3 of 1024 signs differ.
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
    """The comparison of cached vectors with new ones of the same model.

    Attributes:
        texts: The number of texts, duplicates included.
        cached: The number of distinct texts that the cache holds.
        cosines: The cosine of the cached and the new vector, by the position of the text. For binary dtypes it is the
            cosine of the signs. It is reduced if the lengths differ.
        usage: The usage of the new embeddings.
        min_cosine: The lowest cosine of two vectors of one model: 0.999 for floats, less for dtypes that round.
    """

    texts: int
    cached: int
    cosines: Mapping[int, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    min_cosine: float = MIN_COSINE

    @property
    def lowest(self) -> float | None:
        """The lowest cosine, None if nothing was compared."""
        return min(self.cosines.values(), default=None)

    @property
    def changed(self) -> tuple[int, ...]:
        """The positions of the texts whose cached vectors differ from the model's current ones."""
        return tuple(position for position, cosine in self.cosines.items() if not cosine >= self.min_cosine)

    def __str__(self) -> str:
        if self.lowest is None:
            return f"none of {count_noun(self.texts, 'text')} is in the cache; nothing was compared"
        verdict = (
            "the model is unchanged"
            if not self.changed
            else f"not from the current model: {count_noun(len(self.changed), 'vector')}; use another cache folder"
        )
        mean = sum(self.cosines.values()) / len(self.cosines)
        return (
            f"{len(self.cosines):,} of {count_noun(self.cached, 'cached vector')} embedded again: cosine "
            f"{self.lowest:.6f} at least, {mean:.6f} on average; {verdict} ({self.usage})"
        )


def verify_cache(
    embedder: BaseEmbedder,
    spec: InputTypeSpec,
    texts: Iterable[str],
    *,
    sample: int,
    embed_again: Callable[..., EmbeddingResult],
) -> CacheVerification:
    """Embed a sample of the cached texts again, without the cache, and compare."""
    if embedder.vector_cache.backend is None:
        raise ConfigurationError("cache: verify_cache needs a cache (got False). Use an embedder with cache=.")
    plan = plan_call(texts, spec.key_prefix, allows_empty=spec.allows_empty)
    rows = MatrixBuffer(plan.n, plan.first, spec.format)
    lookup = CacheLookup(embedder, spec, plan, rows)
    try:
        lookup.run()
    finally:
        lookup.close()
    if not lookup.hits or rows.matrix is None:
        return CacheVerification(plan.n, 0)
    sample_indexes = evenly_spaced(sorted(lookup.hits), sample)
    cached_rows = rows.matrix[plan.first[sample_indexes]]
    fresh = embed_again([plan.texts[index] for index in sample_indexes], input_type=spec.input_type)
    for error in fresh.failed.values():
        raise error
    cosines = _cosines(cached_rows, fresh.vectors, spec.format.dtype).tolist()
    positions = plan.first[sample_indexes].tolist()
    cosine_at = dict(zip(positions, cosines, strict=True))
    return CacheVerification(plan.n, len(lookup.hits), cosine_at, fresh.usage, MIN_COSINES[spec.format.dtype])


def _cosines(cached: Vectors, fresh: Vectors, dtype: DType) -> npt.NDArray[np.float64]:
    if cached.shape != fresh.shape:
        return np.zeros(len(cached))
    a, b = (_as_floats(rows, dtype) for rows in (cached, fresh))
    lengths = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)) ** 2
    cosines: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / np.where(lengths == 0, 1.0, lengths)
    return cosines


def _as_floats(rows: Vectors, dtype: DType) -> npt.NDArray[np.float64]:
    if dtype not in BIT_PACKED:
        numbers: npt.NDArray[np.float64] = rows.astype(np.float64) - (128.0 if dtype == "uint8" else 0.0)
        return numbers
    packed: npt.NDArray[np.uint8] = rows if dtype == "ubinary" else rows.view(np.uint8) ^ np.uint8(0x80)
    return np.where(np.unpackbits(packed, axis=1), 1.0, -1.0)
