"""Shared parts of HTTP providers: connections, decoding, headers, error responses and redaction."""
