"""A scheduler and a server on a virtual clock: what takes minutes in the world takes milliseconds here."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import ProviderError, RateLimitError
from embedkit_core.common.types import Limits, LimitStatus, RateLimitStatus, Reply
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.rate_limits.user_limits import RateSettings
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler

NO_LIMITS = RateSettings()
LIMITS = Limits(texts=2048, tokens=300_000, text_tokens=8192)


@dataclass
class VirtualServer:
    """Takes `latency` + `per_token` seconds a request; refuses at once what its buckets have no room for."""

    latency: float = 0.05
    per_token: float = 20e-6
    refusal: float = 0.003
    tokens_per_second: float = float("inf")
    burst: float = float("inf")
    requests_per_second: float = float("inf")
    request_burst: float = float("inf")
    tells: bool = False  # what is left
    asks_to_wait: bool = False
    window: float = 0.0  # seconds after which the bucket is full again, at once; it is not filled before
    limits_a_minute: bool = False  # whether the limit that is told is that, or what the bucket holds
    told_late: bool = False  # what is left as of the answer
    inflated: float = 1.1  # how far the client's estimate is off
    fault: Callable[[int], ProviderError | None] = lambda number: None

    def __post_init__(self) -> None:
        self._levels = {"tokens": self.burst, "requests": self.request_burst}
        self._at = 0.0
        self.requests = self.refused = self.tokens = 0
        self.billed: Counter[str] = Counter()
        self.times: list[tuple[float, int]] = []

    def _fill(self, now: float) -> None:
        for name, rate, most in (
            ("tokens", self.tokens_per_second, self.burst),
            ("requests", self.requests_per_second, self.request_burst),
        ):
            if self.window:
                if now // self.window > self._at // self.window:
                    self._levels[name] = most
            elif rate < float("inf"):
                self._levels[name] = min(most, self._levels[name] + rate * (now - self._at))
        self._at = now

    def headroom(self, now: float) -> RateLimitStatus | None:
        if not self.tells:
            return None
        self._fill(now)
        told = {}
        for name, rate, most in (
            ("tokens", self.tokens_per_second, self.burst),
            ("requests", self.requests_per_second, self.request_burst),
        ):
            if rate < float("inf"):
                limit = 60 * rate if self.limits_a_minute else most
                reset = self.window - now % self.window if self.window else (most - self._levels[name]) / rate
                told[name] = LimitStatus(limit, self._levels[name], reset)
        return RateLimitStatus(**told)

    def ask(self, texts: list[str], sizes: list[int], now: float) -> tuple[float, ProviderError | None, int, object]:
        """Give when the answer comes, the refusal if it is one, the bill, and the headroom as of now."""
        self.requests += 1
        tokens = round(sum(sizes) / self.inflated)
        self._fill(now)
        if error := self.fault(self.requests):
            return now + self.latency, error, 0, None
        if tokens > self._levels["tokens"] or self._levels["requests"] < 1:
            self.refused += 1
            waits = (tokens - self._levels["tokens"]) / self.tokens_per_second if self.asks_to_wait else None
            error = RateLimitError("slow down", retry_after=waits)
            error.rate_limits = self.headroom(now)
            error.counts_requests = self._levels["requests"] < 1
            return now + self.refusal, error, 0, None
        self._levels["tokens"] -= tokens
        self._levels["requests"] -= 1
        self.tokens += tokens
        self.billed.update(texts)
        self.times.append((now, tokens))
        return now + self.latency + self.per_token * tokens, None, tokens, self.headroom(now)


@dataclass
class World:
    """Callers, a scheduler, a server and a clock."""

    server: VirtualServer
    seed: int = 0
    now: float = 100.0
    peak: int = 0
    finished: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(rng=random.Random(self.seed))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._wake_at: float | None = None

    def lane(self, wire_id: bytes = b"wire", limits: Limits = LIMITS) -> RequestSpec:
        return RequestSpec(wire_id, 60.0, limits, "truncate", "fake:model", 2, {})

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), action))

    def submit(
        self,
        texts: list[str],
        *,
        size: int = 66,
        urgent: bool = False,
        bound: int = 16,
        retries: int = 6,
        rates: RateSettings = NO_LIMITS,
        deadline: float = float("inf"),
        lane: RequestSpec | None = None,
    ) -> Ticket:
        ticket = Ticket(
            rows=MatrixBuffer(len(texts), np.arange(len(texts))),
            pending=len(texts),
            is_query=urgent,
            max_retries=retries,
            max_in_flight=bound,
            rates=rates,
            deadline=deadline,
            cache=None,
            billing=CallBilling([Meter()]),
            wake=lambda: self.finished.append(ticket),
        )
        wants = [(text.encode(), text, size) for text in texts]
        self.scheduler.submit(ticket, lane or self.lane(), wants, self.now)
        self.pump()
        return ticket

    def pump(self) -> None:
        again = True
        while again:
            step = self.scheduler.poll(self.now)
            for request in step.send:
                self._fly(request)
            for request in step.commit:
                self.scheduler.committed(request)
            for ticket in step.wake:
                ticket.wake()
            again = bool(step.commit)
        self._wake_at = step.wake_at
        self.peak = max(self.peak, self.scheduler.in_flight)

    def _fly(self, request: Request) -> None:
        texts = list(request.batch.texts)
        when, error, tokens, headroom = self.server.ask(texts, [item.size for item in request.items], self.now)

        def land() -> None:
            if error is not None:
                self.scheduler.failed(request, error, self.now)
            else:
                told = self.server.headroom(self.now) if self.server.told_late else headroom
                vectors = np.ones((len(texts), 2), np.float32)
                self.scheduler.replied(request, Reply(vectors, tokens, (), told), self.now)
            self.pump()

        self.at(when, land)

    def run(self, until: float = float("inf")) -> float:
        """Let time pass until nothing is to come, or for so many seconds; give the seconds that it took."""
        began = self.now
        until += began
        for _ in range(1_000_000):
            times = [at for at in (self._events[0][0] if self._events else None, self._wake_at) if at is not None]
            if not times or min(times) > until:
                self.now = self.now if until == float("inf") else until
                return self.now - began
            soon = min(times)
            if soon == self._wake_at and soon > self.now:  # a real timer is late by up to a millisecond
                soon += 0.001
                soon = min([soon, *(at for at, _, _ in self._events[:1])])
            self.now = max(self.now, soon)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            else:
                self.pump()
        raise AssertionError("it goes round in circles")
