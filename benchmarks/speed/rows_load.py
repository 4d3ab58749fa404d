"""Rows of the cache: a warm process, single queries, bytes on disk."""

GROUPS = {}
