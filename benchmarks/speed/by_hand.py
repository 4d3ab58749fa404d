"""Code written for speed only: the SDK's transport, a semaphore, one matrix; plain SQLite.

It has no retries, checks, ordering by index, counts or deduplication: a baseline, not an alternative.
"""

import asyncio
import binascii
import hashlib
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed.corpus import DIMENSIONS
from benchmarks.speed.setting import KEY, MODEL, Client, Methods, Setting

if TYPE_CHECKING:
    import numpy as np

BATCH = {16: 1250, 64: 128}  # by requests in flight: the fastest sizes found
KEYS_PER_SELECT = 500
SDK = ("openai", "httpx2", "orjson", "pybase64", "numpy")


def _sdk(setting: Setting, *, decoder: str, lists: bool) -> Methods:
    import httpx2
    import numpy as np
    import openai
    import orjson
    import pybase64

    decode: Callable[..., bytes] = pybase64.b64decode if decoder == "pybase64" else binascii.a2b_base64
    size = BATCH[setting.slots]
    client = openai.AsyncOpenAI(base_url=setting.base_url, api_key=KEY, max_retries=0)

    async def aembed(texts: list[str]) -> Any:
        slots = asyncio.Semaphore(setting.slots)
        out: Any = [[]] * len(texts) if lists else np.empty((len(texts), DIMENSIONS), np.float32)

        async def one(start: int) -> None:
            body = {"model": MODEL, "input": texts[start : start + size], "encoding_format": "base64"}
            async with slots:
                reply = await client.post("/embeddings", content=orjson.dumps(body), cast_to=httpx2.Response)
            for row, item in enumerate(orjson.loads(reply.content)["data"], start):
                vector = np.frombuffer(decode(item["embedding"]), np.float32)
                out[row] = vector.tolist() if lists else vector

        await asyncio.gather(*(one(start) for start in range(0, len(texts), size)))
        return out

    return Methods(embed=lambda texts: asyncio.run(aembed(texts)), aembed=aembed)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _database(setting: Setting) -> Path:
    return Path(str(setting.folder)) / "by-hand.sqlite"


def fill_sqlite(setting: Setting, texts: list[str], rows: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
    """Write the vectors of texts into the database."""
    with sqlite3.connect(_database(setting)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, value BLOB)")
        pairs = zip(map(_key, texts), (row.tobytes() for row in rows), strict=True)
        connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", pairs)
    connection.close()


def _sqlite(setting: Setting, *, lists: bool) -> Methods:
    import numpy as np

    connection = sqlite3.connect(_database(setting))

    def embed(texts: list[str]) -> Any:
        out = np.empty((len(texts), DIMENSIONS), np.float32)
        position = {_key(text): row for row, text in enumerate(texts)}
        keys = list(position)
        for start in range(0, len(keys), KEYS_PER_SELECT):
            some = keys[start : start + KEYS_PER_SELECT]
            found = f"SELECT key, value FROM vectors WHERE key IN ({','.join('?' * len(some))})"
            for key, value in connection.execute(found, some):
                out[position[key]] = np.frombuffer(value, np.float32)
        return out.tolist() if lists else out

    def query(text: str) -> Any:
        found = connection.execute("SELECT value FROM vectors WHERE key = ?", (_key(text),)).fetchone()
        return np.frombuffer(found[0], np.float32).copy()

    return Methods(embed=embed, query=query, close=connection.close)


CLIENTS = {
    "hand": Client(partial(_sdk, decoder="binascii", lists=False), SDK),
    "hand-lists": Client(partial(_sdk, decoder="binascii", lists=True), SDK),
    "hand-pybase64": Client(partial(_sdk, decoder="pybase64", lists=False), SDK),
    "hand-pybase64-lists": Client(partial(_sdk, decoder="pybase64", lists=True), SDK),
    "hand-sqlite": Client(partial(_sqlite, lists=False), ("sqlite3", "numpy")),
    "hand-sqlite-lists": Client(partial(_sqlite, lists=True), ("sqlite3", "numpy")),
}
