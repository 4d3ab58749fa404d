"""Several processes on one machine, with and without coordination: `python -m benchmarks.processes`."""
