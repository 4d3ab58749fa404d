"""A query whose vector is in memory or in a cache folder: it is answered and counted without a `Call`."""

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
from embedkit_core.engine.runtime.process import is_engine_thread
from embedkit_core.observability.hooks import CallOutcome, is_observed, observe_call


class QueryHit:
    """A query that was found, and is counted.

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


def find_query(embedder: BaseEmbedder, spec: InputTypeSpec, text: str, *, may_block: bool) -> QueryHit | None:
    """Return a query that is in memory or, if this may block, in a cache folder. It is counted.

    None if it needs a `Call`: if it must be sent, was truncated or is not valid, or with progress reports.

    Raises:
        ConfigurationError: A named budget is used with another coordination.
    """
    cache = embedder.vector_cache
    if cache.memory is None or type(text) is not str or embedder.settings.progress:
        return None
    try:
        key = key_of(spec.key_prefix, text)
    except UnicodeEncodeError:
        return None
    entry = cache.memory.get(key)
    if entry is None and may_block and _may_read_folder(embedder):
        entry = cache.find(key)
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
    hit = QueryHit(vector, billing, TextCounts(1, 1, 0, 0, 0, 0, 0, estimate_tokens(text, text.encode())))
    billing.count(hit._counts)
    with observe_call(lambda: call_info(embedder, spec, [text]), lambda: CallOutcome(hit.usage)):
        return hit


def _may_read_folder(embedder: BaseEmbedder) -> bool:
    """Return True if the cache is one folder, and its look-up needs none of what a `Call` does.

    A miss is looked up again by the `Call`, so another cache is not asked here. A `Call` counts the time of the look-up
    for deadlines and observers, and refuses threads of the engine.
    """
    return (
        embedder.vector_cache.is_folder
        and embedder.settings.deadline is None
        and not is_observed()
        and not is_engine_thread()
    )
