"""Models on this machine: sentence-transformers, fastembed and model2vec."""
