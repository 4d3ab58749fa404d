"""Streams through every method, and sources that count how many texts were pulled."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

import numpy as np
import pytest

from embedkit_core import Embedder
from embedkit_core.testing import FakeServer, fake_vector

CHUNK_TEXTS = 256  # texts in a chunk of an embedder with max_concurrency=2
LOOKAHEAD = 4 * CHUNK_TEXTS  # the most texts pulled ahead of the rows

each_method = pytest.mark.parametrize("method", ["sync", "async", "async source"])


def stream_embedder(server: FakeServer, **settings) -> Embedder:
    """Return a fake embedder with max_concurrency=2; `cache` defaults to False."""
    return Embedder("fake:model", base_url=server.url, **{"cache": False, "max_concurrency": 2} | settings)


class CountingSource:
    """An iterator that counts the texts pulled from it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.pulled = 0
        self._texts = iter(texts)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.pulled += 1
        return text


async def async_source(texts: Iterable[str]) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text


def collect_rows(
    embedder: Embedder, texts: Iterable[str], method: str, **options
) -> tuple[list[np.ndarray], Exception | None]:
    """Return all rows of a stream, and the error that ends it, if any."""
    rows: list[np.ndarray] = []

    async def take() -> None:
        async for row in embedder.aembed_iter(texts if method == "async" else async_source(texts), **options):
            rows.append(row)  # noqa: PERF401 - those before an error count too

    try:
        if method == "sync":
            rows.extend(embedder.embed_iter(texts, **options))
        else:
            asyncio.run(take())
    except Exception as error:
        return rows, error
    return rows, None


def are_vectors_of(rows: list[np.ndarray], texts: Iterable[str], role: str = "document") -> bool:
    expected = [fake_vector(text, role=role, model="model") for text in texts]
    return len(rows) == len(expected) and all(map(np.array_equal, rows, expected))
