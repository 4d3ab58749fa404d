"""What HTTP providers share: connections, decoding, headers, refusals, redaction."""
