"""Embeddings for LlamaIndex: `EmbedKitEmbedding`, in place of the framework's own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamaindex_embedkit.embedding import EmbedKitEmbedding

__all__ = ["EmbedKitEmbedding"]


def __getattr__(name: str) -> Any:
    # The package costs nothing until its class is asked for.
    if name != "EmbedKitEmbedding":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from llamaindex_embedkit.embedding import EmbedKitEmbedding
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("llama_index", "pydantic")):
            raise
        from embedkit_core import MissingExtraError

        raise MissingExtraError("llamaindex_embedkit", "llamaindex") from None
    return EmbedKitEmbedding


def __dir__() -> list[str]:
    return [*globals(), *__all__]
