"""Caches whose answers tests control."""

import threading
from typing import Any


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


class DictCache:
    """A cache in a dict."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Any] = {}

    def get_many(self, keys):
        return {key: self.rows[key] for key in keys if key in self.rows}

    def set_many(self, items):
        self.rows.update(items)

    def close(self):
        pass
