"""Embedding of columns on the engine that a user has: Ray, Dask, Spark and others."""

from embedkit_core.fleet.column_embedder import ColumnEmbedder

__all__ = ["ColumnEmbedder"]
