"""Vectors that were paid for elsewhere, taken into the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from embedkit_core.calls.plan import Plan, as_list, plan_call
from embedkit_core.common.errors import CacheError, ConfigurationError, InputError
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Cache, Entry, InputType, Vectors
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.engine.runtime import cache_writer as writer

T = TypeVar("T")
MIN_COSINE = (
    0.999  # the cosine of one text's vector asked twice is above this, and so its length; another model's far below
)
ROWS_PER_COMMIT = 512  # written in one transaction
MIN_MODEL_TOKENS = 256  # tokens: no model that is used for retrieval takes fewer


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of vectors offered to the cache, counted in distinct texts.

    `imported` are in the cache now; `missing` had no vector; `doubtful` names the positions of texts that may be longer
    than the model takes, whose vectors depend on how they were cut: they are left out and paid for when they are asked.
    That is a text with more bytes than the model takes tokens, or than 256 where its limit is not known.
    """

    imported: int
    missing: int
    doubtful: tuple[int, ...]


def import_vectors(
    embedder: BaseEmbedder,
    role: InputTypeSpec,
    texts: Iterable[str],
    vectors: Iterable[Sequence[float] | Vectors | None],
    *,
    verify: int,
    embed: Callable[..., EmbeddingResult],
) -> ImportReport:
    """Check vectors against the model and put them into an embedder's cache, under its keys."""
    keeper = embedder.tiered_cache.backend
    if keeper is None:
        raise ConfigurationError("import_vectors puts vectors into the cache, and this embedder has cache=False")
    if role.format.dtype != "float32":
        raise ConfigurationError("import_vectors takes vectors in float32: use an embedder without dtype=")
    texts = as_list(texts)
    rows = list(vectors)
    if len(rows) != len(texts):
        raise InputError(f"{len(texts)} texts and {len(rows)} vectors: give one for each, None where there is none", ())
    plan = plan_call(texts, role.key_prefix)
    stands = _positions(plan, rows)
    doubtful = _doubtful(plan, role, embedder.provider.max_text_tokens) & stands.keys()
    offers = [_Offer(p, at, _row(rows[at], at)) for p, at in stands.items() if p not in doubtful]
    _check_width(offers, role.format.dimensions or embedder.dimensions, embedder.model)
    if embedder.is_normalized:
        _check_lengths(offers, embedder.model)
    _check_sample(embedder, role.input_type, plan, offers, verify, embed)
    written = 0
    for start in range(0, len(offers), ROWS_PER_COMMIT):
        slab = {plan.keys[offer.place]: offer.row for offer in offers[start : start + ROWS_PER_COMMIT]}
        written += _write(keeper, slab)
    return ImportReport(
        imported=written,
        missing=len(plan.keys) - len(stands),
        doubtful=tuple(int(plan.first[p]) for p in sorted(doubtful)),
    )


def _write(keeper: Cache, slab: dict[bytes, Vectors]) -> int:
    """Write what the cache lacks, which is not to replace what the model itself gave; say how many it has then."""
    failed = None
    try:
        with writer.write_lock.lock:  # what the engine writes meanwhile is the model's own too
            known = keeper.get_many(list(slab))
            keeper.set_many([(key, Entry(row)) for key, row in slab.items() if key not in known])
        return len(keeper.get_many(list(slab)))
    except Exception as error:  # a cache may be anybody's, and its message may hold anything
        failed = type(error).__name__
    raise CacheError(f"vectors could not be written to the cache ({failed}); what was written before is kept")


@dataclass(frozen=True, slots=True)
class _Offer:
    """A vector for the distinct text at `place` in the plan; it stands at `position` of those given."""

    place: int
    position: int
    row: Vectors


def _positions(plan: Plan, rows: Sequence[object]) -> dict[int, int]:
    """Say for each distinct text that has a vector where the first of its vectors stands."""
    stands: dict[int, int] = {}
    for position, place in enumerate(plan.source.tolist()):
        if rows[position] is not None:
            stands.setdefault(place, position)
    return stands


def _doubtful(plan: Plan, role: InputTypeSpec, limit: int | None) -> set[int]:
    """Name the texts that may be over the limit: no token is shorter than a byte."""
    limit = limit or MIN_MODEL_TOKENS
    prompt = len(str(role.request_spec.body.get("prompt", "")).encode())
    return {p for p, text in enumerate(plan.texts) if len(text.encode()) + prompt > limit}


def _row(vector: Any, position: int) -> Vectors:
    try:
        with np.errstate(over="ignore"):  # a number too large for float32 is refused below
            row = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError):
        row = np.empty((0, 0), dtype=np.float32)
    if row.ndim != 1 or not row.size or not np.isfinite(row).all():
        raise InputError(f"the vector at position {position} is not one row of finite numbers", (position,))
    if not row.any():
        raise InputError(f"the vector at position {position} is nothing but zeros: leave it out, as None", (position,))
    return row


def _check_width(offers: Sequence[_Offer], width: int | None, model: str) -> None:
    for offer in offers:
        width = width or len(offer.row)
        if len(offer.row) != width:
            raise ConfigurationError(
                f"the vector at position {offer.position} has {len(offer.row)} dimensions and {model} here has "
                f"{width}: they are another model's, or dimensions= differs; nothing was imported"
            )


def evenly_spaced(things: Sequence[T], n: int) -> list[T]:
    """Give at most n of some things, from the first to the last."""
    return [things[i] for i in sorted(set(np.linspace(0, len(things) - 1, num=n, dtype=int).tolist()))]


def _check_lengths(offers: Sequence[_Offer], model: str) -> None:
    for offer in offers:
        length = float(np.linalg.norm(offer.row.astype(np.float64)))
        if abs(length - 1.0) > 1 - MIN_COSINE:
            raise ConfigurationError(
                f"the vector at position {offer.position} has length {length:.4g}, and those of {model} have length 1: "
                "bring it to that, if it is this model's; nothing was imported"
            )


def _check_sample(
    embedder: BaseEmbedder,
    input_type: InputType,
    plan: Plan,
    offers: Sequence[_Offer],
    verify: int,
    embed: Callable[..., EmbeddingResult],
) -> None:
    """Embed a few of the texts and compare: two models can have the same width, and a cache would keep the error."""
    if not offers or not verify:
        return
    sample = evenly_spaced(offers, verify)
    found = embed([plan.texts[offer.place] for offer in sample], input_type=input_type)
    for error in found.failed.values():
        raise error
    _check_width(offers, found.vectors.shape[1], embedder.model)
    for offer, truth in zip(sample, found.vectors, strict=True):
        length, true_length = float(np.linalg.norm(offer.row)), float(np.linalg.norm(truth))
        cosine = float(offer.row @ truth) / (length * true_length or 1.0)
        if not (cosine >= MIN_COSINE and abs(length - true_length) <= (1 - MIN_COSINE) * true_length):
            raise ConfigurationError(
                f"the vector at position {offer.position} is not {embedder.model}'s for that text (cosine "
                f"{cosine:.3f}, length {length:.4g} for {true_length:.4g}): is it another model's, another input "
                "type's, or not normalised? Nothing was imported"
            )
