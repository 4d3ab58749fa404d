"""Embeddings for LangChain: `EmbedKitEmbeddings`, in place of the framework's own classes, and what they cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_embedkit.embeddings import EmbedKitEmbeddings
    from langchain_embedkit.usage import EmbeddingUsage, EmbeddingUsageHandler, get_embedding_usage

__all__ = ["EmbedKitEmbeddings", "EmbeddingUsage", "EmbeddingUsageHandler", "get_embedding_usage"]

_ROOMS = {
    "EmbedKitEmbeddings": "langchain_embedkit.embeddings",
    "EmbeddingUsage": "langchain_embedkit.usage",
    "EmbeddingUsageHandler": "langchain_embedkit.usage",
    "get_embedding_usage": "langchain_embedkit.usage",
}


def __getattr__(name: str) -> Any:
    # As langchain_core itself: the package costs nothing until something of it is asked for.
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_ROOMS[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("langchain_core", "pydantic")):
            raise
        from embedkit_core import MissingExtraError

        raise MissingExtraError("langchain_embedkit", "langchain") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
