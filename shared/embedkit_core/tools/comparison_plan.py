"""Settings of the compared variants of a model, and their estimated cost."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embedkit_core.common.errors import EmbedKitError
from embedkit_core.common.types import Entry
from embedkit_core.common.vectors import DType
from embedkit_core.embedder import Embedder
from embedkit_core.tools.tasks import Task


def variant_settings(
    settings: Mapping[str, Any],
    dimensions: Sequence[int | None],
    dtypes: Sequence[DType],
    model: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return `Embedder` arguments of each variant; the first one is that from which others can be derived.

    Args:
        settings: All arguments of the model.
        dimensions: Dimensions to compare.
        dtypes: Dtypes to compare.
        model: Arguments of the model itself; its `dimensions` and `dtype` override those to compare.
    """
    cache = settings.get("cache")
    common = {"cache": InMemoryCache() if cache is False else cache, "on_error": "raise"}
    widths = [model["dimensions"]] if "dimensions" in model else sorted(set(dimensions), key=lambda d: -(d or 1 << 30))
    types = [model["dtype"]] if "dtype" in model else sorted(dict.fromkeys(dtypes), key=lambda t: t != "float32")
    pairs = itertools.product(types, widths)
    return [{**settings, **common, "dimensions": width, "dtype": dtype} for dtype, width in pairs]


def model_settings(model: str, base_url: str | None) -> dict[str, Any]:
    """Return `Embedder` arguments of a model, without a base URL if it is local."""
    with contextlib.suppress(EmbedKitError), Embedder(model, cache=False) as embedder:
        if embedder.provider.is_local:
            return {"model": model}
    return {"model": model, "base_url": base_url}


def log_estimates(settings: Mapping[str, Any], task: Task, log: Callable[[str], object]) -> None:
    """Log the estimated cost of a model; an error is reported later, in the row of the model."""
    with contextlib.suppress(EmbedKitError), Embedder(**settings) as embedder:
        log(f"{embedder.model}, documents: {embedder.estimate(task.documents.values())}")
        log(f"{embedder.model}, queries: {embedder.estimate(task.queries.values(), input_type='query')}")


class InMemoryCache:
    """Cache of one comparison, so that all variants of a model are derived from the same vectors."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Return the stored entries of `keys`."""
        return {key: self._entries[key] for key in keys if key in self._entries}

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Store entries."""
        self._entries.update(items)

    def close(self) -> None:
        """Do nothing: the entries are needed by the next variant."""
