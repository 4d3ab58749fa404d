"""OpenAI, and servers with the same API."""
