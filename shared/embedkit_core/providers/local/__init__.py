"""Local sentence-transformers models."""
