"""Embeddings for LlamaIndex: `EmbedKitEmbedding`, in place of the framework's own classes."""

from llamaindex_embedkit.embedding import EmbedKitEmbedding

__all__ = ["EmbedKitEmbedding"]
