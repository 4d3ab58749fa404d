"""Import existing vectors into the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from embedkit_core.cache.access import exclusive_writes
from embedkit_core.calls.plan import Plan, as_list, plan_call
from embedkit_core.common.errors import CacheError, ConfigurationError, InputError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import Cache, Entry, InputType, Vectors
from embedkit_core.common.vectors import VectorSpace
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec

T = TypeVar("T")
# Two vectors of one model for one text have a higher cosine and a higher ratio of lengths; another model's are far
# below.
MIN_COSINE = 0.999
ROWS_PER_COMMIT = 512
MIN_MODEL_LIMIT = 256  # tokens: no retrieval model has a lower limit


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The result of an import, in distinct texts. Empty texts (`on_empty_text="zero"`) are left out.

    Attributes:
        imported: The number of vectors that the cache holds now.
        missing: The number of texts without a vector.
        doubtful: The positions of texts that may exceed the model's limit: their bytes exceed its token limit, or 256
            if the limit is unknown. Their vectors depend on how they were truncated, so they are not imported.
    """

    imported: int
    missing: int
    doubtful: tuple[int, ...]


def import_vectors(
    embedder: BaseEmbedder,
    spec: InputTypeSpec,
    texts: Iterable[str],
    vectors: Iterable[Sequence[float] | Vectors | None],
    *,
    verify: int,
    embed: Callable[..., EmbeddingResult],
) -> ImportReport:
    """Check vectors against the model and write them to the embedder's cache."""
    backend = embedder.vector_cache.backend
    if backend is None:
        raise ConfigurationError("cache: import_vectors needs a cache (got False). Use an embedder with cache=.")
    if spec.format.dtype != "float32":
        raise ConfigurationError(
            f"dtype: import_vectors only imports float32 vectors (got {spec.format.dtype!r}). Use an embedder without "
            "dtype=."
        )
    texts = as_list(texts)
    rows = _as_rows(vectors)
    if len(rows) != len(texts):
        raise InputError(
            f"vectors: expected one per text (got {len(rows)} for {count_noun(len(texts), 'text')}). "
            "Pass None for a text without a vector.",
            (),
        )
    plan = plan_call(texts, spec.key_prefix, allows_empty=spec.allows_empty)
    offered = _positions(plan, rows)
    doubtful = _doubtful(plan, spec, embedder.provider.max_text_tokens) & offered.keys()
    offers = [
        _Offer(p, position, _row(rows[position], position)) for p, position in offered.items() if p not in doubtful
    ]
    _check_width(offers, spec.format.dimensions or embedder.dimensions, embedder.model)
    if embedder.is_normalized:
        _check_lengths(offers, embedder.model)
    _check_sample(embedder, spec.input_type, plan, offers, verify, embed)
    written = 0
    for start in range(0, len(offers), ROWS_PER_COMMIT):
        batch = {plan.keys[offer.index]: offer.row for offer in offers[start : start + ROWS_PER_COMMIT]}
        written += _write(backend, batch, embedder.vector_space)
    return ImportReport(
        imported=written,
        missing=len(plan.keys) - len(offered),
        doubtful=tuple(int(plan.first[p]) for p in sorted(doubtful)),
    )


def _as_rows(vectors: Iterable[Sequence[float] | Vectors | None]) -> list[Any]:
    """Return the vectors as a list.

    Raises:
        InputError: They are not iterable.
    """
    try:
        return list(vectors)
    except TypeError:
        raise InputError(
            f"vectors: expected a vector for each text (got {type(vectors).__name__}). Pass a list or a matrix.", ()
        ) from None


def _write(backend: Cache, batch: dict[bytes, Vectors], space: VectorSpace) -> int:
    """Write the vectors that the cache lacks and keep its entries. Return how many of the batch it holds then."""
    error_name = None
    try:
        with exclusive_writes(backend):  # the engine must not write between the read and the write
            cached = backend.get_many(list(batch))
            missing = [(key, row) for key, row in batch.items() if key not in cached]
            backend.set_many([(key, Entry(row, space=space.name_of_row(len(row)))) for key, row in missing])
        return len(backend.get_many(list(batch)))
    except Exception as error:  # the message of a custom cache may contain anything
        error_name = type(error).__name__
    raise CacheError(f"The vectors could not be written to the cache ({error_name}). Those written before are kept.")


@dataclass(frozen=True, slots=True)
class _Offer:
    """The vector at `position` of the given ones, for the distinct text at `index` in the plan."""

    index: int
    position: int
    row: Vectors


def _positions(plan: Plan, rows: Sequence[object]) -> dict[int, int]:
    """Return the position of the first vector of each distinct text that has one."""
    offered: dict[int, int] = {}
    for position, index in enumerate(plan.source.tolist()):
        if index >= 0 and rows[position] is not None:
            offered.setdefault(index, position)
    return offered


def _doubtful(plan: Plan, spec: InputTypeSpec, limit: int | None) -> set[int]:
    """Return the texts that may exceed the limit. A token has at least one byte."""
    limit = limit or MIN_MODEL_LIMIT
    prompt = len(str(spec.request_spec.body.get("prompt", "")).encode())
    return {p for p, text in enumerate(plan.texts) if len(text.encode()) + prompt > limit}


def _row(vector: Any, position: int) -> Vectors:
    try:
        with np.errstate(over="ignore"):  # overflow is rejected below
            row = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError):
        row = np.empty((0, 0), dtype=np.float32)
    if row.ndim != 1 or not row.size or not np.isfinite(row).all():
        raise InputError(f"The vector at position {position} is not one row of finite numbers.", (position,))
    if not row.any():
        raise InputError(
            f"The vector at position {position} contains only zeros. Pass None instead to skip it.", (position,)
        )
    return row


def _check_width(offers: Sequence[_Offer], width: int | None, model: str) -> None:
    for offer in offers:
        width = width or len(offer.row)
        if len(offer.row) != width:
            raise ConfigurationError(
                f"The vector at position {offer.position} has {len(offer.row)} dimensions, but {model} has {width}: it "
                "is from another model or from another dimensions=. Nothing was imported."
            )


def evenly_spaced(items: Sequence[T], n: int) -> list[T]:
    """Return at most `n` items, evenly spaced from the first to the last."""
    return [items[i] for i in sorted(set(np.linspace(0, len(items) - 1, num=n, dtype=int).tolist()))]


def _check_lengths(offers: Sequence[_Offer], model: str) -> None:
    for offer in offers:
        length = float(np.linalg.norm(offer.row.astype(np.float64)))
        if abs(length - 1.0) > 1 - MIN_COSINE:
            raise ConfigurationError(
                f"The vector at position {offer.position} has length {length:.4g}, but vectors of {model} have length "
                "1. Normalize it if it is from this model. Nothing was imported."
            )


def _check_sample(
    embedder: BaseEmbedder,
    input_type: InputType,
    plan: Plan,
    offers: Sequence[_Offer],
    verify: int,
    embed: Callable[..., EmbeddingResult],
) -> None:
    """Embed a few texts and compare: models may share a width, and the cache would keep wrong vectors."""
    if not offers or not verify:
        return
    sample = evenly_spaced(offers, verify)
    result = embed([plan.texts[offer.index] for offer in sample], input_type=input_type)
    for error in result.failed.values():
        raise error
    _check_width(offers, result.vectors.shape[1], embedder.model)
    for offer, expected in zip(sample, result.vectors, strict=True):
        length, expected_length = float(np.linalg.norm(offer.row)), float(np.linalg.norm(expected))
        cosine = float(offer.row @ expected) / (length * expected_length or 1.0)
        if not (cosine >= MIN_COSINE and abs(length - expected_length) <= (1 - MIN_COSINE) * expected_length):
            raise ConfigurationError(
                f"The vector at position {offer.position} differs from the vector of {embedder.model} for that text "
                f"(cosine {cosine:.3f}, length {length:.4g} instead of {expected_length:.4g}): it is from another "
                "model or another input type, or it is not normalized. Nothing was imported."
            )
