"""A soak test against a server that fails: `make soak`, or `python -m benchmarks.soak`."""
