"""What an answered request comes to: the gate every reply passes, and the rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from embedkit_core.common.errors import BadReplyError
from embedkit_core.common.types import Reply, Vectors
from embedkit_core.common.vectors import CALIBRATED, ELEMENTS, PACKED, Form, overflown, way_to_cut
from embedkit_core.engine.scheduler import long_text as longtext
from embedkit_core.engine.scheduler.items import Lane, Ticket
from embedkit_core.engine.scheduler.queues import Flight


def check(reply: Reply, n_texts: int, width: int | None, lane: Lane) -> None:
    """Raise BadReplyError unless the reply has `n_texts` rows of the lane's form, and every number is finite."""
    model = lane.model
    provider = model.partition(":")[0]
    element = ELEMENTS[lane.dtype]

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
    found, form = vectors.shape[1], Form(lane.dtype)
    dimensions = form.dimensions_of(found)
    if found == 0 or (width is not None and found not in (width, lane.wider)):
        asked = form.dimensions_of(width) if width else 0
        heedless = lane.asks_width and width is not None and found > width and lane.dtype not in CALIBRATED
        way_out = f"; {way_to_cut(asked)}" if heedless else ""
        raise bad(f"answered vectors of {dimensions} dimensions instead of {asked or 'some'}{way_out}", lasts=True)
    if lane.finish is not None and dimensions < (lane.finish.cut or 0):
        few = f"answered vectors of {dimensions} dimensions, fewer than the {lane.finish.cut} wanted"
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
    packs = lane.finish is not None and lane.finish.dtype in PACKED and lane.finish.source not in PACKED
    if packs and lane.finish is not None and (min(found, lane.finish.cut or found) % 8):
        raise bad(f"answered vectors of {found} dimensions, which dtype={lane.finish.dtype!r} cannot pack by eight")


def finished(reply: Reply, lane: Lane) -> Reply:
    """Give a reply with its rows as they are kept.

    Raises:
        BadReplyError: a number does not fit into half the precision.
    """
    if lane.finish is None:
        return reply
    rows = lane.finish(reply.vectors)
    if overflown(rows):
        raise BadReplyError(f"{lane.model} answered a number that does not fit into float16; nothing is kept")
    return replace(reply, vectors=rows)


def check_width(vectors: Vectors, ticket: Ticket) -> None:
    """Check that a caller can take rows, which may be those of another caller's request.

    Raises:
        BadReplyError: their width is not that of the caller's form, or not that of the rows the caller already has.
    """
    found, form = vectors.shape[1], ticket.form
    if form.width not in (None, found):
        wrong = f"{form.dimensions_of(found)} dimensions instead of {form.dimensions}"
        raise BadReplyError(f"the model answered another caller of the same text vectors of {wrong}")
    if ticket.rows.width not in (None, found):
        raise BadReplyError(
            f"the model answers rows of {found} numbers and the cache holds vectors of another width: it has "
            "changed; name dimensions=, or another cache"
        )


def collect(flight: Flight, reply: Reply) -> None:
    """Note which items a reply finishes: its texts, and split texts whose last piece it holds."""
    cut = set(reply.truncated)
    places: list[int] = []
    for place, item in enumerate(flight.items):
        if item.parent is None:
            flight.done.append(item)
            flight.flags.append(item.cut or place in cut)
            places.append(place)
    flight.rows = reply.vectors if len(places) == len(flight.items) else reply.vectors[places]
    for place, item in enumerate(flight.items):
        parent = item.parent
        if parent is None or not parent.missing:
            continue
        parent.parts.append((len(item.text.encode()), reply.vectors[place]))
        parent.missing -= 1
        if not parent.missing:
            parent.missing = -1  # whole, and on its way to the cache
            flight.done.append(parent)
            flight.flags.append(False)
            mean = longtext.mean(parent.parts).astype(flight.rows.dtype, copy=False)
            flight.rows = np.vstack([flight.rows, mean])
