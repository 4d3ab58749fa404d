"""Batch jobs: the providers' asynchronous batch endpoints, whose vectors go into the same cache."""
