"""Vectors that were paid for elsewhere, taken into the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedkit_core.errors import ConfigurationError, InputError
from embedkit_core.plan import Plan, check_list, make_plan
from embedkit_core.roles import Role
from embedkit_core.types import Entry, InputType, Vectors

if TYPE_CHECKING:
    from embedkit_core.embedder import Embedder

SAME = 0.999  # the cosine of one text's vector asked twice is above this; another model's is far below
ROWS = 512  # written in one transaction


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of vectors offered to the cache, counted in distinct texts.

    `imported` are in the cache now; `missing` had no vector; `doubtful` names the positions of texts that may be longer
    than the model takes, whose vectors depend on how they were cut: they are left out and paid for when they are asked.
    """

    imported: int
    missing: int
    doubtful: tuple[int, ...]


def import_vectors(
    embedder: Embedder,
    role: Role,
    texts: Iterable[str],
    vectors: Iterable[Sequence[float] | Vectors | None],
    *,
    verify: int,
) -> Imported:
    """Check vectors against the model and put them into an embedder's cache, under its keys."""
    keeper = embedder.store.keeper
    if keeper is None:
        raise ConfigurationError("import_vectors puts vectors into the cache, and this embedder has cache=False")
    texts = check_list(texts)
    rows = list(vectors)
    if len(rows) != len(texts):
        raise InputError(f"{len(texts)} texts and {len(rows)} vectors: give one for each, None where there is none", ())
    plan = make_plan(texts, role.prefix)
    doubtful = _doubtful(plan, role, embedder.provider.limits.text_tokens)
    places = [p for p, first in enumerate(plan.first) if rows[first] is not None and p not in doubtful]
    taken = {p: _row(rows[plan.first[p]], int(plan.first[p])) for p in places}
    _check_width(taken, plan, role.lane.dimensions or embedder.dimensions, embedder.model)
    _check_sample(embedder, role.input_type, plan, taken, verify)
    written = 0
    for start in range(0, len(places), ROWS):
        slab = places[start : start + ROWS]
        keeper.set_many([(plan.keys[p], Entry(taken[p])) for p in slab])
        written += len(keeper.get_many([plan.keys[p] for p in slab]))
    return Imported(
        imported=written,
        missing=sum(rows[first] is None for first in plan.first),
        doubtful=tuple(int(plan.first[p]) for p in sorted(doubtful)),
    )


def _doubtful(plan: Plan, role: Role, limit: int | None) -> set[int]:
    """Name the texts that may be over the limit: no token is shorter than a byte."""
    if limit is None:
        return set()
    prompt = len(str(role.lane.wire.get("prompt", "")).encode())
    return {p for p, text in enumerate(plan.texts) if len(text.encode()) + prompt > limit}


def _row(vector: Any, position: int) -> Vectors:
    try:
        row = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError):
        row = np.empty((0, 0), dtype=np.float32)
    if row.ndim != 1 or not row.size or not np.isfinite(row).all():
        raise InputError(f"the vector at position {position} is not one row of finite numbers", (position,))
    return row


def _check_width(taken: dict[int, Vectors], plan: Plan, width: int | None, model: str) -> None:
    for place, row in taken.items():
        width = width or len(row)
        if len(row) != width:
            position = int(plan.first[place])
            raise ConfigurationError(
                f"the vector at position {position} has {len(row)} dimensions and {model} here has {width}: "
                "they are another model's, or dimensions= differs; nothing was imported"
            )


def _check_sample(
    embedder: Embedder, input_type: InputType, plan: Plan, taken: dict[int, Vectors], verify: int
) -> None:
    """Embed a few of the texts and compare: two models can have the same width, and a cache would keep the error."""
    places = list(taken)
    sample = sorted({places[i] for i in np.linspace(0, len(places) - 1, num=verify, dtype=int)}) if places else []
    if not sample:
        return
    found = embedder.embed([plan.texts[p] for p in sample], input_type=input_type)
    for place, truth in zip(sample, found.vectors, strict=True):
        row = taken[place]
        cosine = float(row @ truth / (np.linalg.norm(row) * np.linalg.norm(truth) or 1.0))
        if not cosine >= SAME:
            raise ConfigurationError(
                f"the vector at position {int(plan.first[place])} is not {embedder.model}'s for that text (cosine "
                f"{cosine:.3f}): is it another model's, or another input type's? Nothing was imported"
            )
