"""A provider whose vectors are known, which counts what it is asked and fails on request."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np

from embedkit_core.common.errors import (
    BadTextError,
    ConfigurationError,
    ProviderError,
    RequestTooLargeError,
    TextTooLongError,
)
from embedkit_core.common.types import Batch, InputType, Limits, Reply, Vectors
from embedkit_core.providers.base import Client, Provider, ProviderSettings

_servers: weakref.WeakValueDictionary[str, FakeServer] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def fake_vector(text: str, *, role: str = "", dimensions: int = 8, model: str = "fake") -> Vectors:
    """Give the unit vector, float32 (dimensions,), that the fake provider has for a text in a role."""
    seed = hashlib.sha256(f"{model}\0{role}\0{dimensions}\0{text}".encode()).digest()
    vector = np.random.default_rng(np.frombuffer(seed, dtype=np.uint64)).standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it reached the fake server."""

    texts: tuple[str, ...]
    body: dict[str, Any]


class FakeServer:
    """The far end of the fake provider: counts requests, holds them back, fails them.

    Args:
        dimensions: width of the vectors where none is asked for.
        asymmetric: whether queries and documents get different vectors.
        latency: seconds a request takes.
        limits: what one request may hold; texts over them are refused as a real server would.
        usd_per_million: the price of a million tokens, None for unknown.
        max_words: words in one text over which it is refused as too long.
        cuts: whether a text is cut to `max_words` where the request asks for that.

    A token is a word. `faults` are raised one a request, first come first served; None lets one pass.
    `fault_for(texts)` may name a fault for each request; texts in `poison` have their request refused.
    """

    def __init__(
        self,
        *,
        dimensions: int = 8,
        asymmetric: bool = True,
        latency: float = 0.0,
        limits: Limits | None = None,
        usd_per_million: Decimal | None = None,
        max_words: int | None = None,
        cuts: bool = False,
    ) -> None:
        self.url = f"fake://{next(_numbers)}"
        self.dimensions = dimensions
        self.asymmetric = asymmetric
        self.latency = latency
        self.limits = limits or Limits()
        self.usd_per_million = usd_per_million
        self.max_words = max_words
        self.cuts = cuts
        self.faults: deque[ProviderError | None] = deque()
        self.fault_for: Callable[[Sequence[str]], ProviderError | None] | None = None
        self.rejected_texts: set[str] = set()
        self.received: list[ReceivedRequest] = []
        self.billed: Counter[str] = Counter()
        self.in_flight = 0
        self.peak_in_flight = 0
        self._gate = threading.Condition()
        self._held = False
        _servers[self.url] = self

    def hold(self) -> None:
        """Keep requests that arrive from being answered."""
        self._held = True

    def release(self) -> None:
        """Answer what is held back, and what comes."""
        with self._gate:
            self._held = False
            self._gate.notify_all()

    def wait_for_requests(self, n: int, timeout: float = 10.0) -> None:
        """Block until n requests have arrived in all."""
        with self._gate:
            if not self._gate.wait_for(lambda: len(self.received) >= n, timeout):
                raise TimeoutError(f"{len(self.received)} of {n} requests arrived")

    async def answer(self, batch: Batch) -> Reply:
        """Answer one request, or fail it."""
        texts = tuple(batch.texts)
        with self._gate:
            self.received.append(ReceivedRequest(texts, dict(batch.body)))
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            self._gate.notify_all()
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            while self._held:  # noqa: ASYNC110 - other threads open the gate
                await asyncio.sleep(0.001)
            self._refuse(texts, cut=bool(batch.body.get("cut")))
            vectors = np.stack([self.vector(text, batch.body) for text in texts])
            self.billed.update(texts)
            return Reply(vectors, sum(len(text.split()) for text in texts))
        finally:
            with self._gate:
                self.in_flight -= 1

    def vector(self, text: str, wire: dict[str, Any] | Any) -> Vectors:
        """Give the vector this server has for a text, as asked by `wire`."""
        prompt = wire.get("prompt", "")
        if wire.get("cut") and self.max_words is not None and len(text.split()) > self.max_words:
            text = " ".join(text.split()[: self.max_words])
        return fake_vector(
            prompt + text, role=wire.get("role", ""), dimensions=wire["dimensions"], model=str(wire["model"])
        )

    def _refuse(self, texts: Sequence[str], *, cut: bool) -> None:
        fault = self.faults.popleft() if self.faults else None
        if fault is None and self.fault_for is not None:
            fault = self.fault_for(texts)
        if fault is not None:
            raise fault
        if not self.rejected_texts.isdisjoint(texts):
            raise BadTextError("the fake server refuses a text", status=400)
        words = [len(text.split()) for text in texts]
        if self.max_words is not None and cut:
            words = [min(n, self.max_words) for n in words]
        if self.max_words is not None and max(words) > self.max_words:
            over = {place: n for place, n in enumerate(words) if n > self.max_words}
            raise TextTooLongError(positions=over, limit=self.max_words, status=400)
        too_many = len(texts) > self.limits.texts
        if too_many or (self.limits.tokens is not None and sum(words) > self.limits.tokens):
            error = RequestTooLargeError("the fake server takes less in one request", status=400)
            error.counts_texts = too_many
            raise error


class Fake(Provider):
    """The provider side: no network, no key."""

    name: ClassVar[str] = "fake"

    def __init__(self, settings: ProviderSettings) -> None:
        server = _servers.get(settings.base_url or "")
        if server is None:
            raise ConfigurationError(
                "the fake provider needs base_url=FakeServer().url, of a server that is kept alive"
            )
        self._server = server
        self.model = settings.name
        self.endpoint = server.url
        self.account = (self.name, server.url, settings.api_key.fingerprint if settings.api_key else "")
        self.limits = server.limits
        self.dimensions = settings.dimensions or server.dimensions
        self.usd_per_million = server.usd_per_million
        self._prompts = settings.prompts
        self._options = dict(settings.options)

    def request_body(self, input_type: InputType) -> dict[str, Any]:
        """Give the request without its texts."""
        wire: dict[str, Any] = {"model": self.model, "dimensions": self.dimensions} | self._options
        if self._server.asymmetric:
            wire["role"] = input_type
        if self._prompts[input_type]:
            wire["prompt"] = self._prompts[input_type]
        if self._server.cuts:
            wire["cut"] = False
        return wire

    def truncating_body(self, input_type: InputType) -> dict[str, Any] | None:
        """Give the request that has long texts cut, of a server that does."""
        return self.request_body(input_type) | {"cut": True} if self._server.cuts else None

    def connect(self) -> Client:
        """Reach the server, which is in this process."""
        return FakeClient(self._server)


class FakeClient:
    """A connection to a fake server."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def embed(self, batch: Batch) -> Reply:
        """Pass the request on."""
        return await self._server.answer(batch)

    async def aclose(self) -> None:
        """Close nothing."""
