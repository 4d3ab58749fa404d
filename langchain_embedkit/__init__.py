"""Embeddings for LangChain: `EmbedKitEmbeddings`, in place of the framework's own classes."""

from langchain_embedkit.embeddings import EmbedKitEmbeddings

__all__ = ["EmbedKitEmbeddings"]
