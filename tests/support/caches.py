"""Caches that tests control."""

import threading


class GatedCache:
    """A cache whose look-ups wait."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.answered = threading.Event()

    def get_many(self, keys):
        self.asked.set()
        assert self.gate.wait(20)
        self.answered.set()
        return {}

    def set_many(self, items):
        pass

    def close(self):
        pass
