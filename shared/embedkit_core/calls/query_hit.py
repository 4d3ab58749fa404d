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

    None if it needs a `Call`: if a text must be sent, was truncated or is not valid, and with progress reports. So do
    reads of a folder that observers are to see, for which the query that is returned here takes no time.

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
    if entry is None and may_block and not cache.may_block and not is_observed():
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
