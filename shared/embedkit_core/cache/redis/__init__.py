"""Redis: its addresses, its connections, and the cache in it."""
