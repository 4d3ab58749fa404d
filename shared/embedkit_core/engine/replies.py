"""What an answered request comes to: the gate every reply passes, the bill, and the rows."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from embedkit_core.engine import longtext
from embedkit_core.engine.items import MILLION, Flight, Lane, Ticket
from embedkit_core.engine.packing import share_out
from embedkit_core.errors import BadReplyError
from embedkit_core.form import ELEMENTS, Form, way_to_cut
from embedkit_core.types import Reply, Usage


def check(reply: Reply, n_texts: int, width: int | None, lane: Lane) -> None:
    """Raise BadReplyError unless the reply has `n_texts` rows of the lane's form, and every number is finite."""
    model = lane.model
    provider = model.partition(":")[0]
    element = ELEMENTS[lane.dtype]

    def bad(message: str) -> BadReplyError:
        return BadReplyError(f"{model} {message}; nothing of this reply is kept", provider=provider, model=model)

    if not isinstance(reply, Reply) or not isinstance(reply.vectors, np.ndarray):
        raise bad("answered something that is not a matrix of vectors")
    vectors = reply.vectors
    if vectors.dtype != element or vectors.ndim != 2:
        raise bad(f"answered an array of {vectors.dtype} with {vectors.ndim} axes instead of {element} with 2")
    if vectors.shape[0] != n_texts:
        raise bad(f"answered {vectors.shape[0]} vectors for {n_texts} texts")
    found = vectors.shape[1]
    if found == 0 or (width is not None and found not in (width, lane.wider)):
        form = Form(lane.dtype)
        asked = form.dimensions_of(width) if width else 0
        heedless = lane.asks_width and width is not None and found > width
        way_out = f"; {way_to_cut(asked)}" if heedless else ""
        raise bad(f"answered vectors of {form.dimensions_of(found)} dimensions instead of {asked or 'some'}{way_out}")
    if element.kind != "f":
        return
    # One sum is cheaper than a test of each number; it is not finite if any of them is not.
    with np.errstate(all="ignore"):
        total = float(vectors.sum(dtype=np.float32))
    if not math.isfinite(total) and not np.isfinite(vectors).all():
        raise bad("answered a number that is not finite")


def bill(flight: Flight, tokens: int | None) -> None:
    """Book the tokens of a reply on those who pay, each text by its size."""
    lane = flight.lane.lane
    if not tokens:
        return
    bills: Counter[Ticket] = Counter()
    for item, share in zip(flight.items, share_out(tokens, [i.size for i in flight.items]), strict=True):
        if item.payer is not None:
            bills[item.payer] += share
    for ticket, n in bills.items():
        if lane.usd_per_million is None:
            ticket.charge(Usage(tokens=n, unpriced_tokens=n))
        else:
            ticket.charge(Usage(tokens=n, priced_usd=n * lane.usd_per_million / MILLION))


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
