"""Fake provider with deterministic vectors, whose server counts requests and fails on demand."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
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
from embedkit_core.common.validation import check_integer, parse_usd
from embedkit_core.providers.base import Client, Provider, ProviderSettings

_servers: weakref.WeakValueDictionary[str, FakeServer] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def fake_vector(text: str, *, role: str = "", dimensions: int = 8, model: str = "fake") -> Vectors:
    """Return the vector of the fake provider for a text: float32, shape (dimensions,), unit length.

    Args:
        role: The input type, or "" for a symmetric server.
    """
    seed = hashlib.sha256(f"{model}\0{role}\0{dimensions}\0{text}".encode()).digest()
    vector = np.random.default_rng(np.frombuffer(seed, dtype=np.uint64)).standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request received by the fake server."""

    texts: tuple[str, ...]
    body: dict[str, Any]


class FakeServer:
    """Server of the fake provider. It counts, delays and fails requests. A token is a word.

    Args:
        dimensions: Default number of dimensions.
        asymmetric: Whether queries and documents have different vectors.
        latency: Duration of a request in seconds.
        limits: Limits of one request; a request over them fails.
        usd_per_million: Price of a million tokens, None if unknown.
        max_words: Maximum number of words of a text; a longer text is rejected.
        cuts: Whether the server truncates texts to `max_words` if the request body asks for it.

    Attributes:
        faults: Errors of the next requests in order; None lets a request succeed.
        fault_for: Function that returns the error of a request from its texts, or None.
        rejected_texts: Texts whose requests fail with `BadTextError`.
        received: All requests received.
        billed: Number of successful requests of each text.
        in_flight: Number of requests in flight.
        peak_in_flight: Maximum number of requests in flight.

    Raises:
        ConfigurationError: An argument is not valid.
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
        check_integer("dimensions", dimensions, 1)
        if max_words is not None:
            check_integer("max_words", max_words, 1)
        if not isinstance(latency, (int, float)) or not 0 <= latency < math.inf:
            raise ConfigurationError(f"latency: must be a number of seconds, 0 or more (got {latency!r:.80}).")
        self.url = f"fake://{next(_numbers)}"
        self.dimensions = dimensions
        self.asymmetric = asymmetric
        self.latency = latency
        self.limits = limits or Limits()
        self.usd_per_million = None if usd_per_million is None else parse_usd("usd_per_million", usd_per_million)
        self.max_words = max_words
        self.cuts = cuts
        self.faults: deque[ProviderError | None] = deque()
        self.fault_for: Callable[[Sequence[str]], ProviderError | None] | None = None
        self.rejected_texts: set[str] = set()
        self.received: list[ReceivedRequest] = []
        self.billed: Counter[str] = Counter()
        self.in_flight = 0
        self.peak_in_flight = 0
        self._changed = threading.Condition()
        self._held = False
        _servers[self.url] = self

    def hold(self) -> None:
        """Delay the replies until `release`."""
        self._held = True

    def release(self) -> None:
        """Send delayed replies and stop delaying."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def wait_for_requests(self, n: int, timeout: float = 10.0) -> None:
        """Block until the server has received n requests in total."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.received) >= n, timeout):
                raise TimeoutError(
                    f"The fake server received {len(self.received)} of {n} requests within {timeout:g} s."
                )

    async def answer(self, batch: Batch) -> Reply:
        """Return the reply to a request, or raise its error."""
        texts = tuple(batch.texts)
        with self._changed:
            self.received.append(ReceivedRequest(texts, dict(batch.body)))
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            self._changed.notify_all()
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            while self._held:  # noqa: ASYNC110 - released by another thread
                await asyncio.sleep(0.001)
            self._raise_error(texts, truncates=bool(batch.body.get("cut")))
            vectors = np.stack([self.vector(text, batch.body) for text in texts])
            self.billed.update(texts)
            return Reply(vectors, sum(len(text.split()) for text in texts))
        finally:
            with self._changed:
                self.in_flight -= 1

    def vector(self, text: str, body: dict[str, Any] | Any) -> Vectors:
        """Return the vector of a text for a request body."""
        prompt = body.get("prompt", "")
        if body.get("cut") and self.max_words is not None and len(text.split()) > self.max_words:
            text = " ".join(text.split()[: self.max_words])
        return fake_vector(
            prompt + text, role=body.get("role", ""), dimensions=body["dimensions"], model=str(body["model"])
        )

    def _raise_error(self, texts: Sequence[str], *, truncates: bool) -> None:
        fault = self.faults.popleft() if self.faults else None
        if fault is None and self.fault_for is not None:
            fault = self.fault_for(texts)
        if fault is not None:
            raise fault
        if not self.rejected_texts.isdisjoint(texts):
            raise BadTextError("The fake server rejects a text.", status=400)
        words = [len(text.split()) for text in texts]
        if self.max_words is not None and truncates:
            words = [min(n, self.max_words) for n in words]
        if self.max_words is not None and max(words) > self.max_words:
            over = {position: n for position, n in enumerate(words) if n > self.max_words}
            raise TextTooLongError(positions=over, limit=self.max_words, status=400)
        too_many = len(texts) > self.limits.texts
        if too_many or (self.limits.tokens is not None and sum(words) > self.limits.tokens):
            error = RequestTooLargeError("The request exceeds the limits of the fake server.", status=400)
            error.counts_texts = too_many
            raise error


class Fake(Provider):
    """Provider `fake`, which needs no network and no API key."""

    name: ClassVar[str] = "fake"

    def __init__(self, settings: ProviderSettings) -> None:
        server = _servers.get(settings.base_url or "")
        if server is None:
            raise ConfigurationError(
                "base_url: must be the url of a FakeServer that still exists. Keep a reference to the server."
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
        """Return the request body without texts."""
        body: dict[str, Any] = {"model": self.model, "dimensions": self.dimensions} | self._options
        if self._server.asymmetric:
            body["role"] = input_type
        if self._prompts[input_type]:
            body["prompt"] = self._prompts[input_type]
        if self._server.cuts:
            body["cut"] = False
        return body

    def truncating_body(self, input_type: InputType) -> dict[str, Any] | None:
        """Return the request body with which the server truncates long texts, or None if it does not."""
        return self.request_body(input_type) | {"cut": True} if self._server.cuts else None

    def connect(self) -> Client:
        """Return a client of the server, which is in this process."""
        return FakeClient(self._server)


class FakeClient:
    """Client of a fake server."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def embed(self, batch: Batch) -> Reply:
        """Send a request to the server."""
        return await self._server.answer(batch)

    async def aclose(self) -> None:
        """Do nothing."""
