"""The usage event that is sent in addition to LlamaIndex's own events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llama_index_instrumentation.base import BaseEvent

from embedkit_core import InputType, Usage, track_usage


class EmbeddingUsageEvent(BaseEvent):
    """Usage of one call, also of a failed one.

    Attributes:
        usage: Billed tokens, cache hits, requests and cost. None if nothing was requested because the texts are
            invalid, or if the call was canceled before its usage was complete.
    """

    model: str
    input_type: InputType
    usage: Usage | None

    @classmethod
    def class_name(cls) -> str:
        """Return the class name that LlamaIndex serializes."""
        return "EmbeddingUsageEvent"


@dataclass(slots=True)
class Report:
    """Vectors and usage of a call, for the events at its end."""

    vectors: list[list[float]] = field(default_factory=list)
    usage: Usage | None = None

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Set the usage to that of everything that is embedded in the block."""
        with track_usage() as tracker:
            try:
                yield
            finally:
                self.usage = tracker.usage
