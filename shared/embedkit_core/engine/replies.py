"""The gate every reply passes before a row of it is believed."""

from __future__ import annotations

import math

import numpy as np

from embedkit_core.errors import BadReplyError
from embedkit_core.types import Reply


def check(reply: Reply, n_texts: int, dimensions: int | None, model: str) -> None:
    """Raise BadReplyError unless the reply is float32 (n_texts, dimensions) and every number is finite."""
    vectors = reply.vectors
    provider = model.partition(":")[0]

    def bad(message: str) -> BadReplyError:
        return BadReplyError(f"{model} {message}; nothing of this reply is kept", provider=provider, model=model)

    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise bad(f"answered an array of {vectors.dtype} with {vectors.ndim} axes instead of float32 with 2")
    if vectors.shape[0] != n_texts:
        raise bad(f"answered {vectors.shape[0]} vectors for {n_texts} texts")
    if vectors.shape[1] == 0 or (dimensions is not None and vectors.shape[1] != dimensions):
        raise bad(f"answered vectors of {vectors.shape[1]} dimensions instead of {dimensions or 'some'}")
    # One sum is cheaper than a test of each number; it is not finite if any of them is not.
    with np.errstate(all="ignore"):
        total = float(vectors.sum())
    if not math.isfinite(total) and not np.isfinite(vectors).all():
        raise bad("answered a number that is not finite")
