"""The event of ours beside the host's own, and what a call comes to."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Report:
    """What a call comes to, for the events at its end."""

    vectors: list[list[float]] = field(default_factory=list)
    usage: Usage | None = None
