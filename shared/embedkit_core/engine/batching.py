"""How waiting texts become requests: pure arithmetic, no queue and no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from embedkit_core.common.types import Limits

MIN_TEXTS = 32  # 20 waiting texts must not become 16 requests
MAX_TEXTS = 256  # a query must not wait long behind a bulk request, and a crash loses what is in flight
MAX_TOKENS = 16_000
DEFAULT_SECONDS_PER_TOKEN = 20e-6  # that a server takes for a token, until it shows


@dataclass(slots=True)
class RequestCapacity:
    """How much one request may hold: the model's limits, and what refusals taught. Tokens are as estimated."""

    texts: int
    tokens: int
    text_tokens: int

    @classmethod
    def from_limits(cls, limits: Limits) -> RequestCapacity:
        """Give the room a model's limits leave; where they say nothing of tokens, our own cap."""
        tokens = limits.tokens or MAX_TOKENS
        return cls(limits.texts, tokens, min(limits.text_tokens or tokens, tokens))

    def halve(self, sizes: Sequence[int], *, counts_texts: bool = False) -> None:
        """Learn from a refusal of a request with texts of these sizes that it held too many texts, or tokens."""
        if counts_texts:
            self.texts = max(1, min(self.texts, len(sizes) // 2))
        else:
            self.tokens = max(1, min(self.tokens, sum(sizes) // 2))


def texts_per_request(waiting: int, slots: int, cap: int, *, tokens: float = 0, cap_tokens: float = 1) -> int:
    """Give the number of texts a request should hold: equal waves over the slots, between floor and cap.

    `tokens` are those of all that wait, of which a request takes `cap_tokens` at most. 500 texts and 8 slots give 63;
    20 texts give one request, 20 000 texts and 16 slots give 250.
    """
    slots = max(1, slots)
    waves = max(1, ceil(waiting / (slots * cap)), ceil(tokens / (slots * cap_tokens)))
    return min(cap, max(MIN_TEXTS, ceil(waiting / (waves * slots))))
