"""From arguments to a configured embedder."""
