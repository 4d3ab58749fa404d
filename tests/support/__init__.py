"""Local servers, fixtures and helpers that several test files share."""
