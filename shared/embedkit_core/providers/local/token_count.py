"""How long texts are in tokens, heard while a model tokenizes them: tokenizing all of them again would cost as much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class TokenCount:
    """The lengths in tokens of texts, their prompts included, as the model had them: cut to its limit.

    `encode` has its texts tokenized by the model's `tokenize`, and since sentence-transformers 5.3 or so by its
    `preprocess`, which is told the prompt apart. Where neither is called, nothing is heard.
    """

    def __init__(self) -> None:
        self.lengths: dict[str, int] = {}

    def clear(self) -> None:
        """Forget what was heard."""
        self.lengths = {}

    def listen(self, model: SentenceTransformer) -> None:
        """Listen to a model from now on."""
        for name in ("tokenize", "preprocess"):
            if (method := getattr(model, name, None)) is not None:
                setattr(model, name, self._listening(method))

    def _listening(self, method: Callable[..., Mapping[str, Any]]) -> Callable[..., Mapping[str, Any]]:
        def heard(texts: Sequence[str], *args: Any, **settings: Any) -> Mapping[str, Any]:
            features = method(texts, *args, **settings)
            prompt = settings.get("prompt") or ""
            for text, length in zip(texts, row_lengths(features, len(texts)), strict=False):
                self.lengths[prompt + text] = length
            return features

        return heard


def row_lengths(features: Mapping[str, Any], n: int) -> list[int]:
    """Give how many tokens each row of a tokenized batch of n texts has; nothing where that does not show."""
    mask, offsets = features.get("attention_mask"), features.get("offsets")
    if mask is not None and mask.ndim == 2 and len(mask) == n:
        counts: list[int] = mask.sum(dim=1).tolist()
        return counts
    if offsets is not None and len(offsets) == n:  # of static embeddings: where each begins in one long row
        return [end - start for start, end in pairwise([*offsets.tolist(), len(features["input_ids"])])]
    return []
