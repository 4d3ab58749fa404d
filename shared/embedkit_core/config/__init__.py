"""Configuration: from constructor arguments to a configured embedder."""
