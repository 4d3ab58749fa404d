"""Streams, through every door there is, and sources that tell how far they were pulled."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

import numpy as np
import pytest

from embedkit_core import Embedder
from embedkit_core.testing import FakeServer, fake_vector

PIECE = 256  # texts, of an embedder with two slots
MOST = 4 * PIECE  # pulled and not yet given

each_door = pytest.mark.parametrize("door", ["sync", "async", "async source"])


def streaming(server: FakeServer, **settings) -> Embedder:
    """An embedder with two slots; without a cache unless one is given."""
    return Embedder("fake:model", base_url=server.url, **{"cache": False, "max_concurrency": 2} | settings)


class Source:
    """An iterator that counts what was taken from it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.pulled = 0
        self._texts = iter(texts)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.pulled += 1
        return text


async def as_async(texts: Iterable[str]) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text


def taken(embedder: Embedder, texts: Iterable[str], door: str, **options) -> tuple[list[np.ndarray], Exception | None]:
    """All rows that a stream gives, and the error that it ends with."""
    rows: list[np.ndarray] = []

    async def take() -> None:
        async for row in embedder.aembed_iter(texts if door == "async" else as_async(texts), **options):
            rows.append(row)  # noqa: PERF401 - those before an error count too

    try:
        if door == "sync":
            rows.extend(embedder.embed_iter(texts, **options))
        else:
            asyncio.run(take())
    except Exception as error:
        return rows, error
    return rows, None


def are_vectors_of(rows: list[np.ndarray], texts: Iterable[str], role: str = "document") -> bool:
    expected = [fake_vector(text, role=role, model="model") for text in texts]
    return len(rows) == len(expected) and all(map(np.array_equal, rows, expected))
