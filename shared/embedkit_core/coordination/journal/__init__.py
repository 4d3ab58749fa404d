"""The journal of batch jobs: a SQLite file beside the cache, written before each step that must not be repeated."""
