"""The one place that sends requests: a pure scheduler and the threads around it."""
