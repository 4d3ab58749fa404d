"""How a model is compared in several dimensions and types and paid for once, and what that will cost."""

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


def rows_of(
    given: Mapping[str, Any],
    dimensions: Sequence[int | None],
    dtypes: Sequence[DType],
    own: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Give the arguments of a model's embedders: what others can be cut from first."""
    cache = given.get("cache")
    kept = {"cache": InMemoryCache() if cache is False else cache, "on_error": "raise"}
    widths = [own["dimensions"]] if "dimensions" in own else sorted(set(dimensions), key=lambda d: -(d or 1 << 30))
    types = [own["dtype"]] if "dtype" in own else sorted(dict.fromkeys(dtypes), key=lambda t: t != "float32")
    pairs = itertools.product(types, widths)
    return [{**given, **kept, "dimensions": width, "dtype": dtype} for dtype, width in pairs]


def asked_at(model: str, base_url: str | None) -> dict[str, Any]:
    """Give a model's arguments with the address it is asked at; one on this machine has none."""
    with contextlib.suppress(EmbedKitError), Embedder(model, cache=False) as embedder:
        if embedder.provider.is_local:
            return {"model": model}
    return {"model": model, "base_url": base_url}


def announce(asked: Mapping[str, Any], task: Task, say: Callable[[str], object]) -> None:
    """Say what a model's texts will cost; one that cannot be made is told of where its row is made."""
    with contextlib.suppress(EmbedKitError), Embedder(**asked) as embedder:
        say(f"{embedder.model}, documents: {embedder.estimate(task.documents.values())}")
        say(f"{embedder.model}, queries: {embedder.estimate(task.queries.values(), input_type='query')}")


class InMemoryCache:
    """A cache for one comparison, so that all rows of a model are cut from the same vectors."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """Give the entries there are."""
        return {key: self._entries[key] for key in keys if key in self._entries}

    def set_many(self, items: Sequence[tuple[bytes, Entry]]) -> None:
        """Keep entries."""
        self._entries.update(items)

    def close(self) -> None:
        """Keep them all the same."""
