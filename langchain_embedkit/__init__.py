"""LangChain embeddings (`EmbedKitEmbeddings`), usage tracking for them, and caches in LangChain's byte stores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_embedkit.byte_stores import ByteStoreCache
    from langchain_embedkit.embeddings import EmbedKitEmbeddings
    from langchain_embedkit.usage import EmbeddingUsage, EmbeddingUsageHandler, get_embedding_usage

__all__ = ["ByteStoreCache", "EmbedKitEmbeddings", "EmbeddingUsage", "EmbeddingUsageHandler", "get_embedding_usage"]

_MODULES = {
    "ByteStoreCache": "langchain_embedkit.byte_stores",
    "EmbedKitEmbeddings": "langchain_embedkit.embeddings",
    "EmbeddingUsage": "langchain_embedkit.usage",
    "EmbeddingUsageHandler": "langchain_embedkit.usage",
    "get_embedding_usage": "langchain_embedkit.usage",
}


def __getattr__(name: str) -> Any:
    # Lazy imports, as in langchain_core: importing the package is cheap.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(("langchain_core", "pydantic")):
            raise
        from embedkit_core import MissingExtraError

        raise MissingExtraError("langchain_embedkit", "langchain") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
