"""The speed benchmark: `make bench-speed`, or `python -m benchmarks.speed`."""
