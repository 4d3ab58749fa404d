"""Request sizes: how many texts and tokens one request holds. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from embedkit_core.common.types import Limits

MIN_TEXTS = 32  # fewer waiting texts are not spread over several requests
MAX_TEXTS = 256  # a query must not wait long behind a bulk request, and a crash loses the requests in flight
MAX_TOKENS = 16_000
DEFAULT_SECONDS_PER_TOKEN = 20e-6  # a server's time per token, until it is measured


@dataclass(slots=True)
class RequestCapacity:
    """How much one request may hold: the model's limits, reduced by refusals.

    Attributes:
        texts: The maximum number of texts.
        tokens: The maximum of estimated tokens in a request.
        text_tokens: The estimated tokens beyond which a text is sent alone.
    """

    texts: int
    tokens: int
    text_tokens: int

    @classmethod
    def from_limits(cls, limits: Limits) -> RequestCapacity:
        """Return the capacity by a model's limits; if they do not bound tokens, `MAX_TOKENS` does."""
        tokens = limits.tokens or MAX_TOKENS
        return cls(limits.texts, tokens, min(limits.text_tokens or tokens, tokens))

    def halve(self, sizes: Sequence[int], *, counts_texts: bool = False) -> None:
        """Halve the texts or tokens after the refusal of a request with texts of these sizes as too large."""
        if counts_texts:
            self.texts = max(1, min(self.texts, len(sizes) // 2))
        else:
            self.tokens = max(1, min(self.tokens, sum(sizes) // 2))


def texts_per_request(waiting: int, slots: int, cap: int, *, tokens: float = 0, cap_tokens: float = 1) -> int:
    """Return how many texts a request should hold: equal waves over the free slots, between `MIN_TEXTS` and `cap`.

    Args:
        waiting: The number of waiting texts.
        slots: The number of free slots.
        cap: The maximum number of texts in a request.
        tokens: The tokens of all waiting texts.
        cap_tokens: The maximum number of tokens in a request.

    Example:
        500 texts over 8 slots are 63 texts a request, 20 texts are one request, and 20,000 texts over 16 slots are 250
        texts a request (cap 256).
    """
    slots = max(1, slots)
    waves = max(1, ceil(waiting / (slots * cap)), ceil(tokens / (slots * cap_tokens)))
    return min(cap, max(MIN_TEXTS, ceil(waiting / (waves * slots))))
