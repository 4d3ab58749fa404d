"""Embeddings for LlamaIndex: `EmbedKitEmbedding`, in place of the framework's own classes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamaindex_embedkit.embedding import EmbedKitEmbedding
    from llamaindex_embedkit.events import EmbeddingUsageEvent

__all__ = ["EmbedKitEmbedding", "EmbeddingUsageEvent"]

_ROOMS = {"EmbedKitEmbedding": "llamaindex_embedkit.embedding", "EmbeddingUsageEvent": "llamaindex_embedkit.events"}


def __getattr__(name: str) -> Any:
    # The package costs nothing until something of it is asked for.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_ROOMS[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("llama_index", "pydantic")):
            raise
        from embedkit_core import MissingExtraError

        raise MissingExtraError("llamaindex_embedkit", "llamaindex") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
