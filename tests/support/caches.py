"""Caches whose answers tests control."""

import threading


class GatedCache:
    """An empty cache whose lookups wait for `gate`."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.gate = threading.Event()
        self.finished = threading.Event()

    def get_many(self, keys):
        self.started.set()
        assert self.gate.wait(20)
        self.finished.set()
        return {}

    def set_many(self, items):
        pass

    def close(self):
        pass
