"""The event of ours beside the host's own."""

from __future__ import annotations

from llama_index_instrumentation.base import BaseEvent

from embedkit_core import InputType, Usage


class EmbeddingUsageEvent(BaseEvent):
    """What one call took, on failure too: tokens as billed, hits, requests, cost.

    `usage` is None where nothing was asked (the texts were refused) or the caller left before it was known.
    """

    model: str
    input_type: InputType
    usage: Usage | None

    @classmethod
    def class_name(cls) -> str:
        """Give the name the host serializes under."""
        return "EmbeddingUsageEvent"
