"""The engine sends all requests: a scheduler without I/O, and the threads around it."""
