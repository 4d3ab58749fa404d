"""Token counts of texts, recorded while a model tokenizes them, so that texts are not tokenized twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class TokenCount:
    """Records token counts from a model's `tokenize` or `preprocess` method.

    `encode` calls `tokenize`, and since about sentence-transformers 5.3 `preprocess`, which has the prompt as an
    argument of its own. If neither is called, `lengths` is empty.

    Attributes:
        lengths: Tokens of each text with its prompt, truncated to the model's limit.
    """

    def __init__(self) -> None:
        self.lengths: dict[str, int] = {}

    def clear(self) -> None:
        """Remove the recorded counts."""
        self.lengths = {}

    def attach(self, model: SentenceTransformer) -> None:
        """Record the counts of a model from now on."""
        for name in ("tokenize", "preprocess"):
            if (method := getattr(model, name, None)) is not None:
                setattr(model, name, self._recording(method))

    def _recording(self, method: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
        def recorded(texts: Sequence[str], *args: Any, **settings: Any) -> Mapping[str, Any]:
            features = method(texts, *args, **settings)
            prompt = settings.get("prompt") or ""
            for text, length in zip(texts, row_lengths(features, len(texts)), strict=False):
                self.lengths[prompt + text] = length
            return features

        return recorded


def row_lengths(features: Mapping[str, Any], n: int) -> list[int]:
    """Return the tokens of each row of a tokenized batch of n texts, or an empty list if they are unknown."""
    mask, offsets = features.get("attention_mask"), features.get("offsets")
    if mask is not None and mask.ndim == 2 and len(mask) == n:
        counts: list[int] = mask.sum(dim=1).tolist()
        return counts
    if offsets is not None and len(offsets) == n:  # static embeddings: start of each text in one long row
        return [end - start for start, end in pairwise([*offsets.tolist(), len(features["input_ids"])])]
    return []
