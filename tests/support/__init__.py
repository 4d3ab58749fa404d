"""Local servers that answer as the providers document, for tests that go through the real SDKs."""
