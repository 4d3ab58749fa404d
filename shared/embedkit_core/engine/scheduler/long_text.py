"""Rules for texts over a model's limit; the results depend only on the text and the refusal. No I/O.

By "fit-1" and "mean-1", a text is sent whole first, so that a text that fits is never changed. If the provider may
truncate silently, a text that is certainly too long is shortened or split before it is sent. By "server", a provider
with a `truncating_body` gets a text whole first too, unless its estimate is far over the limit. The rule's name is part
of every cache key.

"fit-1"   Keep the first `len * limit / tokens` code points, less 2 %, or the first three quarters if the refusal has no
          token count. Repeat until it fits.
"mean-1"  Split into the corresponding number of pieces with equally many code points. Embed each piece, or split it
          again. The vector is the mean of the pieces' vectors, weighted by their UTF-8 bytes and normalized.
"server"  The provider truncates (sentence-transformers at `max_seq_length`, others if `truncating_body` asks for it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from itertools import pairwise
from math import ceil

import numpy as np

from embedkit_core.common.types import LongText, Vectors
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.engine.scheduler.items import RequestSpec

SAFETY_MARGIN = 0.98
FRACTION_WITHOUT_COUNT = 0.75


def rule_name(policy: LongText, *, provider_cuts: bool) -> str:
    """Return the name of the rule for texts over the limit, for the cache key."""
    if policy == "truncate":
        return "server" if provider_cuts else "fit-1"
    return {"mean": "mean-1", "error": "error"}[policy]


def _fraction(tokens: int | None, limit: int | None) -> float:
    if tokens and limit and tokens > limit:
        return limit / tokens * SAFETY_MARGIN
    return FRACTION_WITHOUT_COUNT


def shorten(text: str, tokens: int | None, limit: int | None) -> str:
    """Return the beginning of a refused text by rule "fit-1"; empty if nothing is left to try."""
    return text[: min(len(text) - 1, int(len(text) * _fraction(tokens, limit)))]


def split(text: str, tokens: int | None, limit: int | None) -> list[str]:
    """Split a refused text into pieces by rule "mean-1"; a single piece if it cannot be split."""
    count = min(len(text), max(2, ceil(1 / _fraction(tokens, limit))))
    edges = [len(text) * i // max(count, 1) for i in range(count + 1)]
    return [text[a:b] for a, b in pairwise(edges)]


def split_to_fit(text: str, tokens: int, limit: int) -> list[str]:
    """Split a text of `tokens` tokens into pieces by rule "mean-1", whose estimates are within the limit."""
    if tokens <= limit or len(text) == 1:
        return [text]
    pieces = split(text, tokens, limit)
    return [part for piece in pieces for part in split_to_fit(piece, estimate_tokens(piece, piece.encode()), limit)]


def min_tokens(text: str, counted: int | None) -> int:
    """Return the counted tokens of a text, else a lower bound: its words, each of which has at least one token."""
    return len(text.split()) if counted is None else counted


def may_be_counted(sizes: Sequence[int], spec: RequestSpec) -> bool:
    """Return True if a text may be over the limit, so that a tokenizer may be loaded to count its tokens."""
    limit = spec.limits.text_tokens
    return limit is not None and max(sizes, default=0) > limit // 2


def maybe_truncated(
    texts: Sequence[str],
    sizes: Sequence[int],
    spec: RequestSpec,
    count_tokens: Callable[[str], int | None],
    settled: Set[int],
) -> list[int]:
    """Return the indices of texts that the provider may have truncated silently: their length is over the limit.

    The length is counted if the tokenizer is available locally, else estimated. The answer depends on the text only, so
    that it is the same for a cache hit.

    Args:
        texts: The texts.
        sizes: Their estimated tokens.
        spec: The spec of their requests.
        count_tokens: Counts the tokens of a text; None if it cannot.
        settled: The indices of texts that were truncated here or failed; they are left out.
    """
    limit = spec.limits.text_tokens
    if limit is None or not spec.may_truncate_silently:
        return []
    found = []
    for index, size in enumerate(sizes):
        if size > limit and index not in settled:
            tokens = count_tokens(texts[index])
            was_split = spec.long_text == "mean" and min_tokens(texts[index], tokens) > limit
            if not was_split and (tokens is None or tokens > limit):
                found.append(index)
    return found


def mean(parts: list[tuple[int, Vectors]]) -> Vectors:
    """Return the normalized weighted mean of (weight, vector) parts, (dimensions,) of float32."""
    weights = np.array([w for w, _ in parts], dtype=np.float64)
    total = (np.stack([v for _, v in parts]).astype(np.float64) * weights[:, None]).sum(axis=0)
    length = float(np.linalg.norm(total))
    unit: Vectors = (total / length if length else total).astype(np.float32)
    return unit
