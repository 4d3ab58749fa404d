"""Replies: validation, post-processing, and the items that a reply completes. No I/O."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from embedkit_core.common.errors import BadReplyError
from embedkit_core.common.formatting import count_noun
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
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket, max_billed_tokens
from embedkit_core.engine.scheduler.queues import Request

MAX_SERVER_PROMPT_TOKENS = 4096  # of a prompt that a server adds to each text by itself


def validate(reply: Reply, n_texts: int, width: int | None, spec: RequestSpec) -> None:
    """Check that a reply has `n_texts` rows of the expected width and dtype, all finite and not zero.

    Args:
        reply: The reply of the provider.
        n_texts: The number of texts in the request.
        width: The expected number of values in a row; None if it is unknown.
        spec: The spec of the request.

    Raises:
        BadReplyError: The reply does not match.
    """
    model = spec.model
    provider = model.partition(":")[0]
    element = NUMPY_DTYPES[spec.dtype]

    def bad(message: str, *, lasts: bool = False) -> BadReplyError:
        error = BadReplyError(f"{model} {message}. The reply was discarded", provider=provider, model=model)
        error.lasts = lasts
        return error

    if not isinstance(reply, Reply) or not isinstance(reply.vectors, np.ndarray):
        raise bad("returned no matrix of vectors")
    vectors = reply.vectors
    if vectors.dtype != element or vectors.ndim != 2:
        raise bad(f"returned an array of {vectors.dtype} with {vectors.ndim} axes instead of {element} with 2")
    if vectors.shape[0] != n_texts:
        raise bad(f"returned {count_noun(len(vectors), 'vector')} for {count_noun(n_texts, 'text')}")
    found: int = vectors.shape[1]
    vector_format = VectorFormat(spec.dtype)
    dimensions = vector_format.dimensions_of(found)
    if found == 0 or (width is not None and found not in (width, spec.fallback_width)):
        expected = vector_format.dimensions_of(width) if width else 0
        ignored = spec.requests_width and width is not None and found > width and spec.dtype not in PROVIDER_QUANTIZED
        fix = f"; {truncation_hint(expected)}" if ignored else ""
        raise bad(f"returned vectors of {dimensions} dimensions instead of {expected or 'some'}{fix}", lasts=True)
    if spec.post_processing is not None and dimensions < (spec.post_processing.truncate_to or 0):
        requested = spec.post_processing.truncate_to
        raise bad(f"returned vectors of {dimensions} dimensions, fewer than the requested {requested}", lasts=True)
    if spec.dtype == "int8" and not vectors.any(axis=1).all():
        raise bad("returned a vector of zeros")
    if element.kind != "f":
        return
    # One sum is cheaper than a test of each number, and not finite if any number is not.
    with np.errstate(all="ignore"):
        total = float(vectors.sum(dtype=np.float32))
    if not math.isfinite(total) and not np.isfinite(vectors).all():
        raise bad("returned a number that is not finite")
    if not np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64 if element.itemsize > 2 else np.float32).all():
        raise bad("returned a vector of zeros")
    packs = (
        spec.post_processing is not None
        and spec.post_processing.dtype in BIT_PACKED
        and spec.post_processing.source not in BIT_PACKED
    )
    if packs and spec.post_processing is not None and (min(found, spec.post_processing.truncate_to or found) % 8):
        raise bad(
            f"returned vectors of {found} dimensions, which dtype={spec.post_processing.dtype!r} cannot pack by eight"
        )


def believable_bill(request: Request, tokens: int | None) -> int | None:
    """Return the billed tokens that a reply states, None if it states none, 0, or more than its texts can have.

    If no budget reserved the upper bound, a server may bill a prompt of its own in addition.
    """
    if type(tokens) is not int or tokens <= 0:
        return None
    # No text has more characters than bytes, so most bills need no exact bound.
    if tokens <= sum(len(item.text) for item in request.items):
        return tokens
    is_guarded = any(item.reserved for item in request.items)
    server_prompt = 0 if is_guarded else MAX_SERVER_PROMPT_TOKENS
    return tokens if tokens <= sum(max_billed_tokens(item) + server_prompt for item in request.items) else None


def post_process(reply: Reply, spec: RequestSpec) -> Reply:
    """Return a reply with its rows converted to the dtype and width that are cached.

    Raises:
        BadReplyError: A number does not fit into float16.
    """
    if spec.post_processing is None:
        return reply
    rows = spec.post_processing(reply.vectors)
    if overflowed_rows(rows):
        raise BadReplyError(f"{spec.model} returned a number that does not fit into float16. The reply was discarded")
    return replace(reply, vectors=rows)


def check_width(vectors: Vectors, ticket: Ticket) -> None:
    """Check that rows have the width a caller expects; they may come from the request of another caller.

    Raises:
        BadReplyError: The width differs from the requested one, or from that of the rows the caller already has.
    """
    found, vector_format = vectors.shape[1], ticket.vector_format
    if vector_format.width not in (None, found):
        widths = f"{vector_format.dimensions_of(found)} dimensions instead of {vector_format.dimensions}"
        raise BadReplyError(f"The coalesced request of another caller returned vectors of {widths}")
    if ticket.rows.width not in (None, found):
        raise BadReplyError(
            f"Vector width changed: the model returned {found} values, the cache has {ticket.rows.width}. "
            "Set dimensions= or use another cache="
        )


def complete_items(request: Request, reply: Reply) -> None:
    """Set the items and rows that a reply completes: its texts, and split texts whose last piece it has."""
    truncated = set(reply.truncated)
    request.response_model = reply.model
    whole: list[int] = []
    for index, item in enumerate(request.items):
        if item.parent is None:
            request.done.append(item)
            request.truncated.append(item.is_truncated or index in truncated)
            whole.append(index)
    request.rows = reply.vectors if len(whole) == len(request.items) else reply.vectors[whole]
    for index, item in enumerate(request.items):
        parent = item.parent
        if parent is None or not parent.missing_pieces:
            continue
        parent.piece_vectors.append((len(item.text.encode()), reply.vectors[index]))
        parent.missing_pieces -= 1
        if not parent.missing_pieces:
            parent.missing_pieces = -1  # complete
            request.done.append(parent)
            request.truncated.append(False)
            mean = longtext.mean(parent.piece_vectors).astype(request.rows.dtype, copy=False)
            request.rows = np.vstack([request.rows, mean])
