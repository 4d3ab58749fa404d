"""LlamaIndex embeddings (`EmbedKitEmbedding`) and the usage event."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamaindex_embedkit.embedding import EmbedKitEmbedding
    from llamaindex_embedkit.events import EmbeddingUsageEvent

__all__ = ["EmbedKitEmbedding", "EmbeddingUsageEvent"]

_MODULES = {"EmbedKitEmbedding": "llamaindex_embedkit.embedding", "EmbeddingUsageEvent": "llamaindex_embedkit.events"}


def __getattr__(name: str) -> Any:
    # Lazy imports: importing the package is cheap.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("llama_index", "pydantic")):
            raise
        from embedkit_core import MissingExtraError

        raise MissingExtraError("llamaindex_embedkit", "llamaindex") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
