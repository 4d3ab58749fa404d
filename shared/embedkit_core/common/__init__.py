"""Data types and helpers that all other packages may import."""
