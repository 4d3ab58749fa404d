"""The cache in a folder: one SQLite database."""
