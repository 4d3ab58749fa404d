"""Damage to caches in use: corrupted and truncated values, deleted and overwritten databases."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
import time
from pathlib import Path

from benchmarks.soak.settings import MODEL, Events
from embedkit_core import Embedder
from embedkit_core.cache.disk.folder import DATABASE, OWN_FOLDER


class CacheDamage:
    """Damages the cache of one lineage; each damage is recorded before it can have an effect."""

    def __init__(self, url: str, folder: Path, lineage: str, events: Events, rng: random.Random) -> None:
        self._own = folder / OWN_FOLDER
        self._lineage = lineage
        self._events = events
        self._rng = rng
        self._embedder = Embedder(MODEL, base_url=url, cache=False)  # for cache keys

    def corrupt_values(self, n: int) -> None:
        """Flip a bit of up to `n` values, or truncate them."""
        if not (self._own / DATABASE).exists():
            return
        texts = [f"{self._lineage} text {self._rng.randrange(3000)}" for _ in range(n)]
        with contextlib.closing(sqlite3.connect(self._own / DATABASE, timeout=30, isolation_level=None)) as connection:
            for text in texts:
                self._corrupt(connection, text)

    def _corrupt(self, connection: sqlite3.Connection, text: str) -> None:
        key = bytes.fromhex(self._embedder.explain(text).key)
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute("SELECT value FROM Cache WHERE key = ?", [key]).fetchone()
        if found is not None:
            self._events.add("damaged value", text=text)
            connection.execute("UPDATE Cache SET value = ? WHERE key = ?", [self._corrupted(found[0]), key])
        connection.execute("COMMIT")

    def _corrupted(self, value: bytes) -> bytes:
        place = self._rng.randrange(len(value))
        if self._rng.random() < 0.3:
            return value[:place]
        return value[:place] + bytes([value[place] ^ 1 << self._rng.randrange(8)]) + value[place + 1 :]

    def delete_or_overwrite(self) -> None:
        """Delete the cache folder, or overwrite parts of its database."""
        if not (self._own / DATABASE).exists():
            return
        self._events.add("lost cache", lineage=self._lineage)
        if self._rng.random() < 0.5:
            shutil.rmtree(self._own, ignore_errors=True)
            return
        with (self._own / DATABASE).open("r+b") as file:
            size = file.seek(0, 2)
            for _ in range(10):
                file.seek(self._rng.randrange(0, max(1, size - 512)))
                file.write(self._rng.randbytes(512))


def wait_for_turn(stop: float, interval: float, rng: random.Random) -> bool:
    """Sleep for about `interval` seconds; return False if that would be after `stop`."""
    pause = rng.uniform(0.5, 1.5) * interval
    if time.monotonic() + pause > stop:
        return False
    time.sleep(pause)
    return True
