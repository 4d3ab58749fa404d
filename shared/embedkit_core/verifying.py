"""Cached vectors compared with what the model gives today: a model may change under its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from embedkit_core.errors import ConfigurationError
from embedkit_core.form import PACKED, DType
from embedkit_core.importing import SAME, spread
from embedkit_core.plan import make_plan
from embedkit_core.roles import Role
from embedkit_core.types import Entry, Usage, Vectors

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Verified:
    """How like the model's own of today some cached vectors are.

    `cached` counts the distinct texts that the cache has; `cosines` gives for the positions of those that were embedded
    anew the cosine of both vectors, of the signs where the type is binary. Two answers of one model are above 0.999;
    what is below is another model's.
    """

    texts: int
    cached: int
    cosines: Mapping[int, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    @property
    def lowest(self) -> float | None:
        """The least of the cosines; None where nothing was compared."""
        return min(self.cosines.values(), default=None)

    @property
    def changed(self) -> tuple[int, ...]:
        """The positions of texts whose cached vectors are not the model's any more."""
        return tuple(position for position, cosine in self.cosines.items() if not cosine >= SAME)

    def __str__(self) -> str:
        if self.lowest is None:
            return f"none of {self.texts:,} texts is in the cache: nothing was compared"
        same = "the model is the same" if not self.changed else f"{len(self.changed):,} are not the model's any more"
        mean = sum(self.cosines.values()) / len(self.cosines)
        return (
            f"{len(self.cosines):,} of {self.cached:,} cached vectors embedded anew: cosine {self.lowest:.6f} at "
            f"least, {mean:.6f} on average; {same} ({self.usage})"
        )


def verify_cache(embedder: Embedder, role: Role, texts: Iterable[str], *, sample: int) -> Verified:
    """Embed some of the texts that are cached once more, past the cache, and compare."""
    if embedder.store.keeper is None:
        raise ConfigurationError("verify_cache compares with the cache, and this embedder has cache=False")
    plan = make_plan(texts, role.prefix)
    found: dict[int, Entry] = {}
    for block in embedder.store.read(plan.keys, hot=False):
        found.update((plan.places[key], entry) for key, entry in block.items() if key in plan.places)
    if not found:
        return Verified(plan.n, 0)
    chosen = spread(sorted(found), sample)
    fresh = embedder.without_cache().embed([plan.texts[place] for place in chosen], input_type=role.input_type)
    for error in fresh.failed.values():
        raise error
    kept = np.stack([_viewed(role, found[place].vector) for place in chosen])
    cosines = _cosines(kept, fresh.vectors, role.form.dtype).tolist()
    positions = plan.first[chosen].tolist()
    return Verified(plan.n, len(found), dict(zip(positions, cosines, strict=True)), fresh.usage)


def _viewed(role: Role, vector: Vectors) -> Vectors:
    viewed: Vectors = vector if role.view is None else role.view(vector[None, :])[0]
    return viewed


def _cosines(one: Vectors, other: Vectors, dtype: DType) -> npt.NDArray[np.float64]:
    if one.shape != other.shape:
        return np.zeros(len(one))
    a, b = (_numbers(rows, dtype) for rows in (one, other))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: npt.NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / np.where(lengths == 0, 1.0, lengths)
    return cosines


def _numbers(rows: Vectors, dtype: DType) -> npt.NDArray[np.float64]:
    if dtype not in PACKED:
        return rows.astype(np.float64)
    packed: npt.NDArray[np.uint8] = rows if dtype == "ubinary" else rows.view(np.uint8) ^ np.uint8(0x80)
    return np.where(np.unpackbits(packed, axis=1), 1.0, -1.0)
