"""Calls and streams: from texts to results."""
