"""The calls that a process of the soak test makes, and the check of every row."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.soak.settings import (
    BUDGET_TOKENS,
    MAX_IN_FLIGHT,
    MODEL,
    REQUESTS_PER_MINUTE,
    TIMEOUT_SECONDS,
    Events,
    Settings,
    expected_vector,
)
from embedkit_core import BudgetError, Embedder, EmbedKitError, PartialFailureError, ProviderError


class Actions:
    """The random calls of one process.

    Attributes:
        counts: calls, rows and errors by name.
        running: method and start time of the calls that have not ended.
    """

    def __init__(self, settings: Settings, events: Events) -> None:
        self.settings = settings
        self.events = events
        self.counts: Counter[str] = Counter()
        self.running: dict[object, tuple[str, float]] = {}
        self._shared: dict[str, Any] = {}
        if settings.is_shared:
            self._shared = {
                "account": settings.lineage,
                "requests_per_minute": REQUESTS_PER_MINUTE,
                "budget_tokens": BUDGET_TOKENS,
                "budget_name": settings.budget,
            }
        self.embedder = self.new_embedder()

    def new_embedder(self) -> Embedder:
        """Return a new embedder of the same account and cache."""
        settings = self.settings
        return Embedder(
            MODEL,
            base_url=settings.url,
            api_key=self._key if settings.is_shared else settings.key,
            cache=settings.folder,
            max_concurrency=MAX_IN_FLIGHT,
            timeout=TIMEOUT_SECONDS,
            **self._shared,
        )

    def _key(self) -> str:
        """Return the API key: a function, so that processes with different keys have one account."""
        return self.settings.key

    # Texts

    def texts(self, rng: random.Random, most: int) -> list[str]:
        """Return consecutive texts, some of them twice; the number of texts grows every second."""
        known = 300 + int(150 * (time.monotonic() - self.settings.started))
        start, n = rng.randrange(known), rng.randint(1, most)
        texts = [f"{self.settings.lineage} text {i}" for i in range(start, start + n)]
        return texts + rng.choices(texts, k=rng.choice([0, 0, n // 4]))

    def query(self, rng: random.Random) -> str:
        return f"{self.settings.lineage} query {rng.randrange(200)}"

    # Checks

    def check(self, texts: Sequence[str], rows: Sequence[np.ndarray] | np.ndarray) -> None:
        """Compare every row with the vector of its text."""
        wrong = [text for text, row in zip(texts, rows, strict=True) if not np.array_equal(row, expected_vector(text))]
        self.counts["rows"] += len(texts)
        if wrong:
            self.events.add("violation", what=f"{len(wrong)} of {len(texts)} rows are wrong", texts=wrong[:3])

    @contextlib.contextmanager
    def call(self, method: str, texts: Sequence[str] = ()) -> Iterator[None]:
        """Record a running call and its error; check the rows of a partial failure."""
        token = object()
        self.running[token] = method, time.monotonic()
        try:
            yield
        except PartialFailureError as error:
            self.counts["partial failures"] += 1
            if texts:
                self.check([texts[place] for place in error.succeeded], error.result.vectors[list(error.succeeded)])
        except ProviderError as error:
            self.counts[type(error).__name__] += 1
        except BudgetError as error:
            self.counts["BudgetError"] += 1
            if not self._shared:
                self.events.add("violation", what=f"{method}: {error}")
        except EmbedKitError as error:
            self.events.add("violation", what=f"{method}: {type(error).__name__}: {error}")
        finally:
            del self.running[token]
            self.counts[method] += 1

    # Sync calls

    def call_sync(self, rng: random.Random) -> None:
        """Make one random call."""
        rng.choice([self._embed, self._query, self._query, self._stream, self._embed_and_close])(rng)

    def _embed(self, rng: random.Random) -> None:
        texts = self.texts(rng, 600)
        with self.call("embed", texts):
            self.check(texts, self.embedder.embed(texts, max_batch_texts=rng.choice([None, None, 50])).vectors)

    def _query(self, rng: random.Random) -> None:
        text = self.query(rng)
        with self.call("embed_query"):
            self.check([text], [self.embedder.embed_query(text)])

    def _embed_and_close(self, rng: random.Random) -> None:
        texts = self.texts(rng, 100)
        with self.call("embed and close", texts), self.new_embedder() as embedder:
            self.check(texts, embedder.embed_documents(texts))

    def _stream(self, rng: random.Random) -> None:
        texts = self.texts(rng, 4000)
        end = rng.choice([None, None, rng.randrange(1, 2000)])
        rows: list[np.ndarray] = []
        with self.call("embed_iter"):
            stream = self.embedder.embed_iter(iter(texts))
            rows.extend(itertools.islice(stream, end))
            if rng.random() < 0.5:
                stream.close()
            del stream
        self.check(texts[: len(rows)], rows)

    # Async calls

    async def session(self, rng: random.Random, until: float) -> None:
        """Make calls in several tasks until a time, some of them cancelled; a task left on the loop is a violation."""
        await asyncio.gather(*(self._task(random.Random(rng.random()), until) for _ in range(6)))
        for _ in range(200):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return
            await asyncio.sleep(0.01)
        self.events.add("violation", what=f"tasks left on a loop: {[str(task.get_coro()) for task in left]}")

    async def _task(self, rng: random.Random, until: float) -> None:
        while time.monotonic() < until:
            action = rng.choice([self._aembed, self._aquery, self._aquery, self._astream])
            timeout = rng.choice([None, None, None, rng.uniform(0.0, 0.3)])
            try:
                async with asyncio.timeout(timeout):
                    await action(rng)
            except TimeoutError:
                self.counts["cancelled"] += 1

    async def _aembed(self, rng: random.Random) -> None:
        texts = self.texts(rng, 600)
        with self.call("aembed", texts):
            self.check(texts, (await self.embedder.aembed(texts)).vectors)

    async def _aquery(self, rng: random.Random) -> None:
        text = self.query(rng)
        with self.call("aembed_query"):
            self.check([text], [await self.embedder.aembed_query(text)])

    async def _astream(self, rng: random.Random) -> None:
        texts = self.texts(rng, 4000)
        end = rng.choice([None, None, rng.randrange(1, 2000)])
        rows: list[np.ndarray] = []
        try:
            with self.call("aembed_iter"):
                async for row in self.embedder.aembed_iter(rng.choice([texts, slowly(texts, rng)])):
                    rows.append(row)
                    if len(rows) == end:
                        break
        finally:
            self.check(texts[: len(rows)], rows)


async def slowly(texts: Sequence[str], rng: random.Random) -> AsyncIterator[str]:
    """Yield texts with pauses."""
    for text in texts:
        if rng.random() < 0.005:
            await asyncio.sleep(rng.uniform(0.0, 0.2))
        yield text
