"""The scheduler: a state machine without threads, clock or I/O."""
