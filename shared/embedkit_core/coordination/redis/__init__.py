"""Coordinator in Redis: all processes that use one database."""
