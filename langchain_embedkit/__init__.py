"""Embeddings for LangChain: `EmbedKitEmbeddings`, in place of the framework's own classes."""

try:
    from langchain_embedkit.embeddings import EmbedKitEmbeddings
except ModuleNotFoundError as error:
    if not (error.name or "").startswith(("langchain_core", "pydantic")):
        raise
    from embedkit_core import MissingExtraError

    raise MissingExtraError("langchain_embedkit", "langchain") from None

__all__ = ["EmbedKitEmbeddings"]
