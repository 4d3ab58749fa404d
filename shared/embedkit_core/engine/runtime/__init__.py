"""The threads and the event loop around the scheduler."""
