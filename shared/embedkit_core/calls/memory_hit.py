"""A query whose vector is in memory: it is answered and counted without a `Call`."""

from __future__ import annotations

from embedkit_core.cache.key import key_of
from embedkit_core.calls.call_info import call_info
from embedkit_core.calls.shared_budgets import check_budgets
from embedkit_core.common.types import Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.config.base import BaseEmbedder
from embedkit_core.config.roles import InputTypeSpec
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.meter import TextCounts
from embedkit_core.costs.tokens import estimate_tokens
from embedkit_core.costs.tracker import active_trackers
from embedkit_core.observability.hooks import CallOutcome, observe_call


class MemoryHit:
    """A query that was found in memory, and is counted.

    Attributes:
        vector: The vector, shape (dimensions,), read-only.
    """

    __slots__ = ("_billing", "_counts", "vector")

    def __init__(self, vector: Vectors, billing: CallBilling, counts: TextCounts) -> None:
        self.vector = vector
        self._billing = billing
        self._counts = counts

    @property
    def usage(self) -> Usage:
        """The usage of the query."""
        return self._billing.usage(self._counts)


def find_in_memory(embedder: BaseEmbedder, spec: InputTypeSpec, text: str) -> MemoryHit | None:
    """Return a query that is in memory, and count it. None if it needs a `Call`. It does not block.

    A truncated text, one that is not valid, and progress reports are left to the `Call`.

    Raises:
        ConfigurationError: A named budget is used with another coordination.
    """
    memory = embedder.vector_cache.memory
    if memory is None or type(text) is not str or embedder.settings.progress:
        return None
    try:
        entry = memory.get(key_of(spec.key_prefix, text))
    except UnicodeEncodeError:
        return None
    if entry is None or entry.truncated:
        return None
    vector, wanted = entry.vector, spec.format
    if vector.dtype != wanted.numpy_dtype or wanted.dimensions_of(len(vector)) != embedder.dimensions:
        return None
    trackers = active_trackers()
    billing = CallBilling.of_call(
        embedder.meter, embedder.budget, embedder.price, trackers, model=embedder.model, input_type=spec.input_type
    )
    check_budgets(billing.budgets, spec.request_spec.coordination)
    hit = MemoryHit(vector, billing, TextCounts(1, 1, 0, 0, 0, 0, 0, estimate_tokens(text, text.encode())))
    billing.count(hit._counts)
    with observe_call(lambda: call_info(embedder, spec, [text]), lambda: CallOutcome(hit.usage)):
        return hit
