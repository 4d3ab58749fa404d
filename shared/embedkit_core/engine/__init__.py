"""The one place that sends: a pure scheduler, and a thin shell of one thread around it."""
