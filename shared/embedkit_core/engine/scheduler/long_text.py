"""What becomes of a text that a model refuses as too long: rules that depend on nothing but the text and the refusal.

A text is sent whole first, so that one which fits is never cut. The rules' names are part of every key.

"fit-1"   on a refusal keep the first `len * limit / tokens` code points, less 2 %; where the server gives no count,
          the first three quarters; again until it fits.
"mean-1"  on a refusal cut into that many equal pieces of code points; each piece is embedded, or cut again; the
          vector is the mean of the pieces' vectors, weighted by their UTF-8 bytes, brought to unit length.
"server"  the model cuts by itself (sentence-transformers at `max_seq_length`).
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import numpy as np

from embedkit_core.common.types import LongText, Vectors

SAFETY_MARGIN = 0.98
FRACTION_WITHOUT_COUNT = 0.75


def rule_name(policy: LongText, *, provider_cuts: bool) -> str:
    """Name the rule by which a text over the limit is treated, for the key."""
    if policy == "truncate":
        return "server" if provider_cuts else "fit-1"
    return {"mean": "mean-1", "error": "error"}[policy]


def _fraction(tokens: int | None, limit: int | None) -> float:
    if tokens and limit and tokens > limit:
        return limit / tokens * SAFETY_MARGIN
    return FRACTION_WITHOUT_COUNT


def shorten(text: str, tokens: int | None, limit: int | None) -> str:
    """Give the beginning of a text that was refused, by rule "fit-1"; empty where nothing is left to try."""
    return text[: min(len(text) - 1, int(len(text) * _fraction(tokens, limit)))]


def split(text: str, tokens: int | None, limit: int | None) -> list[str]:
    """Cut a text that was refused into pieces, by rule "mean-1"; a single piece where it cannot be cut."""
    count = min(len(text), max(2, ceil(1 / _fraction(tokens, limit))))
    edges = [len(text) * i // max(count, 1) for i in range(count + 1)]
    return [text[a:b] for a, b in pairwise(edges)]


def mean(parts: list[tuple[int, Vectors]]) -> Vectors:
    """Give the weighted mean, float32 (dimensions,), of (weight, vector) parts, brought to unit length."""
    weights = np.array([w for w, _ in parts], dtype=np.float64)
    total = (np.stack([v for _, v in parts]).astype(np.float64) * weights[:, None]).sum(axis=0)
    length = float(np.linalg.norm(total))
    unit: Vectors = (total / length if length else total).astype(np.float32)
    return unit
