"""What an answered request comes to: the gate every reply passes, and the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from embedkit_core.common.errors import BadReplyError
from embedkit_core.common.types import Reply, Vectors
from embedkit_core.common.vectors import (
    BIT_PACKED,
    NUMPY_DTYPES,
    PROVIDER_QUANTIZED,
    VectorFormat,
    overflowed_rows,
    truncation_hint,
)
from embedkit_core.engine.scheduler import long_text as longtext
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request


def validate(reply: Reply, n_texts: int, width: int | None, lane: RequestSpec) -> None:
    """Raise BadReplyError unless the reply has `n_texts` rows of the lane's form, and every number is finite."""
    model = lane.model
    provider = model.partition(":")[0]
    element = NUMPY_DTYPES[lane.dtype]

    def bad(message: str, *, lasts: bool = False) -> BadReplyError:
        error = BadReplyError(f"{model} {message}; nothing of this reply is kept", provider=provider, model=model)
        error.lasts = lasts
        return error

    if not isinstance(reply, Reply) or not isinstance(reply.vectors, np.ndarray):
        raise bad("answered something that is not a matrix of vectors")
    vectors = reply.vectors
    if vectors.dtype != element or vectors.ndim != 2:
        raise bad(f"answered an array of {vectors.dtype} with {vectors.ndim} axes instead of {element} with 2")
    if vectors.shape[0] != n_texts:
        raise bad(f"answered {vectors.shape[0]} vectors for {n_texts} texts")
    found, form = vectors.shape[1], VectorFormat(lane.dtype)
    dimensions = form.dimensions_of(found)
    if found == 0 or (width is not None and found not in (width, lane.fallback_width)):
        asked = form.dimensions_of(width) if width else 0
        heedless = lane.requests_width and width is not None and found > width and lane.dtype not in PROVIDER_QUANTIZED
        way_out = f"; {truncation_hint(asked)}" if heedless else ""
        raise bad(f"answered vectors of {dimensions} dimensions instead of {asked or 'some'}{way_out}", lasts=True)
    if lane.post_processing is not None and dimensions < (lane.post_processing.truncate_to or 0):
        few = f"answered vectors of {dimensions} dimensions, fewer than the {lane.post_processing.truncate_to} wanted"
        raise bad(few, lasts=True)
    if lane.dtype == "int8" and not vectors.any(axis=1).all():
        raise bad("answered a vector of zeros")
    if element.kind != "f":
        return
    # One sum is cheaper than a test of each number; it is not finite if any of them is not.
    with np.errstate(all="ignore"):
        total = float(vectors.sum(dtype=np.float32))
    if not math.isfinite(total) and not np.isfinite(vectors).all():
        raise bad("answered a number that is not finite")
    if not np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64 if element.itemsize > 2 else np.float32).all():
        raise bad("answered a vector of zeros")
    packs = (
        lane.post_processing is not None
        and lane.post_processing.dtype in BIT_PACKED
        and lane.post_processing.source not in BIT_PACKED
    )
    if packs and lane.post_processing is not None and (min(found, lane.post_processing.truncate_to or found) % 8):
        raise bad(
            f"answered vectors of {found} dimensions, which dtype={lane.post_processing.dtype!r} cannot pack by eight"
        )


def post_process(reply: Reply, lane: RequestSpec) -> Reply:
    """Give a reply with its rows as they are kept.

    Raises:
        BadReplyError: a number does not fit into half the precision.
    """
    if lane.post_processing is None:
        return reply
    rows = lane.post_processing(reply.vectors)
    if overflowed_rows(rows):
        raise BadReplyError(f"{lane.model} answered a number that does not fit into float16; nothing is kept")
    return replace(reply, vectors=rows)


def check_width(vectors: Vectors, ticket: Ticket) -> None:
    """Check that a caller can take rows, which may be those of another caller's request.

    Raises:
        BadReplyError: their width is not that of the caller's form, or not that of the rows the caller already has.
    """
    found, form = vectors.shape[1], ticket.vector_format
    if form.width not in (None, found):
        wrong = f"{form.dimensions_of(found)} dimensions instead of {form.dimensions}"
        raise BadReplyError(f"the model answered another caller of the same text vectors of {wrong}")
    if ticket.rows.width not in (None, found):
        raise BadReplyError(
            f"the model answers rows of {found} numbers and the cache holds vectors of another width: it has "
            "changed; name dimensions=, or another cache"
        )


def complete_items(request: Request, reply: Reply) -> None:
    """Note which items a reply finishes: its texts, and split texts whose last piece it holds."""
    cut = set(reply.truncated)
    places: list[int] = []
    for place, item in enumerate(request.items):
        if item.parent is None:
            request.done.append(item)
            request.truncated.append(item.is_truncated or place in cut)
            places.append(place)
    request.rows = reply.vectors if len(places) == len(request.items) else reply.vectors[places]
    for place, item in enumerate(request.items):
        parent = item.parent
        if parent is None or not parent.missing_pieces:
            continue
        parent.piece_vectors.append((len(item.text.encode()), reply.vectors[place]))
        parent.missing_pieces -= 1
        if not parent.missing_pieces:
            parent.missing_pieces = -1  # whole, and on its way to the cache
            request.done.append(parent)
            request.truncated.append(False)
            mean = longtext.mean(parent.piece_vectors).astype(request.rows.dtype, copy=False)
            request.rows = np.vstack([request.rows, mean])
