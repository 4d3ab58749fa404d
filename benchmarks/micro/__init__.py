"""Small benchmarks, run by name: `python -m benchmarks.micro imports`."""
