"""Workers on one Redis, as plain processes and through Ray: `python -m benchmarks.fleet`."""
