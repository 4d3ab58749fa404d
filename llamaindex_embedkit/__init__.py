"""Embeddings for LlamaIndex: `EmbedKitEmbedding`, in place of the framework's own classes."""

try:
    from llamaindex_embedkit.embedding import EmbedKitEmbedding
except ModuleNotFoundError as error:
    if not (error.name or "").startswith(("llama_index", "pydantic")):
        raise
    from embedkit_core import MissingExtraError

    raise MissingExtraError("llamaindex_embedkit", "llamaindex") from None

__all__ = ["EmbedKitEmbedding"]
