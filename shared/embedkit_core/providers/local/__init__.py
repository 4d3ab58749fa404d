"""sentence-transformers models on this machine."""
