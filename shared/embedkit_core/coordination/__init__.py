"""Coordination of the processes that share a cache: texts in flight, rate limits and named budgets."""
