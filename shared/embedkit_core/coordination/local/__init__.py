"""Coordinator of the processes on one machine: a SQLite file, and a lock file for each process."""
