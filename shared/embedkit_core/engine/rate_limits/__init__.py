"""Rate limits of users and providers. No I/O."""
