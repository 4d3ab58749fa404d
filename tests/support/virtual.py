"""Simulation of a scheduler and a server on a virtual clock."""

import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from embedkit_core.calls.rows import MatrixBuffer
from embedkit_core.common.errors import ProviderError, RateLimitError
from embedkit_core.common.types import NO_LIMITS, Limits, LimitStatus, RateLimitStatus, RateSettings, Reply
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.meter import Meter
from embedkit_core.engine.rate_limits.controller import MAX_TOKENS_PER_ESTIMATED
from embedkit_core.engine.scheduler.items import RequestSpec, Ticket
from embedkit_core.engine.scheduler.queues import Request
from embedkit_core.engine.scheduler.scheduler import Scheduler

LIMITS = Limits(texts=2048, tokens=300_000, text_tokens=8192)


@dataclass
class VirtualServer:
    """A server that takes `latency` + `per_token` seconds per request, and refuses requests over its limits at once."""

    latency: float = 0.05
    per_token: float = 20e-6
    per_text: float = 0.002  # if `queued_texts` is set
    refusal: float = 0.003
    tokens_per_second: float = float("inf")
    burst: float = float("inf")
    requests_per_second: float = float("inf")
    request_burst: float = float("inf")
    sends_headers: bool = False  # the remaining requests and tokens
    sends_retry_after: bool = False
    slots: int | None = None  # requests in progress; further ones are refused
    queued_texts: int | None = None  # while more texts wait, requests are refused; one request is in progress
    overload: Callable[[], ProviderError] = lambda: RateLimitError("currently overloaded", status=429)
    window: float = 0.0  # seconds of a fixed window, at whose end the bucket is full again
    limits_per_minute: bool = False  # headers name the limit per minute, not the capacity of the bucket
    headers_at_reply: bool = False  # headers have the state at the time of the reply
    estimate_ratio: float = 1.1  # estimated tokens / billed tokens
    fault: Callable[[int], ProviderError | None] = lambda number: None

    def __post_init__(self) -> None:
        self._levels = {"tokens": self.burst, "requests": self.request_burst}
        self._at = 0.0
        self.requests = self.refused = self.tokens = 0
        self.billed: Counter[str] = Counter()
        self.times: list[tuple[float, int]] = []
        self._ends: list[float] = []  # of the requests in progress
        self._idle_at = 0.0  # if `queued_texts` is set

    def _is_full(self, now: float) -> bool:
        self._ends = [end for end in self._ends if end > now]
        waiting = max(0.0, self._idle_at - now) / self.per_text
        is_busy = self.slots is not None and len(self._ends) >= self.slots
        return is_busy or (self.queued_texts is not None and waiting > self.queued_texts)

    def _end(self, texts: int, tokens: int, now: float) -> float:
        """Return the time at which a request that is accepted now ends."""
        end = now + self.latency + self.per_token * tokens
        if self.queued_texts is not None:
            end = self._idle_at = max(now, self._idle_at) + self.per_text * texts
        self._ends.append(end)
        return end

    def _fill(self, now: float) -> None:
        for name, rate, capacity in (
            ("tokens", self.tokens_per_second, self.burst),
            ("requests", self.requests_per_second, self.request_burst),
        ):
            if self.window:
                if now // self.window > self._at // self.window:
                    self._levels[name] = capacity
            elif rate < float("inf"):
                self._levels[name] = min(capacity, self._levels[name] + rate * (now - self._at))
        self._at = now

    def rate_limit_status(self, now: float) -> RateLimitStatus | None:
        if not self.sends_headers:
            return None
        self._fill(now)
        limits = {}
        for name, rate, capacity in (
            ("tokens", self.tokens_per_second, self.burst),
            ("requests", self.requests_per_second, self.request_burst),
        ):
            if rate < float("inf"):
                limit = 60 * rate if self.limits_per_minute else capacity
                reset = self.window - now % self.window if self.window else (capacity - self._levels[name]) / rate
                limits[name] = LimitStatus(limit, self._levels[name], reset)
        return RateLimitStatus(**limits)

    def answer(self, texts: list[str], sizes: list[int], now: float) -> tuple[float, ProviderError | None, int, object]:
        """Return the time of the reply, the refusal or None, the billed tokens, and the rate-limit status as of now."""
        self.requests += 1
        tokens = round(sum(sizes) / self.estimate_ratio)
        self._fill(now)
        if error := self.fault(self.requests):
            return now + self.latency, error, 0, None
        if self._is_full(now):
            self.refused += 1
            return now + self.refusal, self.overload(), 0, self.rate_limit_status(now)
        if tokens > self._levels["tokens"] or self._levels["requests"] < 1:
            self.refused += 1
            waits = (tokens - self._levels["tokens"]) / self.tokens_per_second if self.sends_retry_after else None
            error = RateLimitError("slow down", retry_after=waits)
            error.rate_limits = self.rate_limit_status(now)
            error.counts_requests = self._levels["requests"] < 1
            return now + self.refusal, error, 0, None
        self._levels["tokens"] -= tokens
        self._levels["requests"] -= 1
        self.tokens += tokens
        self.billed.update(texts)
        self.times.append((now, tokens))
        return self._end(len(texts), tokens, now), None, tokens, self.rate_limit_status(now)


class UserLimitsCheck:
    """Checks that no 60 seconds have more than the strictest limits of the callers with pending work.

    Tokens are those that the scheduler knows of: estimated and calibrated, then billed.
    """

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self._sent: deque[tuple[float, list[float]]] = deque()

    def on_sent(self, request: Request, now: float) -> list[float]:
        """Check a request that is sent now. Return its tokens as a list, for corrections."""
        self.tickets = [ticket for ticket in self.tickets if not ticket.closed]
        tokens = [request.sent.tokens]
        self._sent.append((now, tokens))
        while self._sent[0][0] <= now - 60.0:
            self._sent.popleft()
        total = sum(one[0] for _, one in self._sent)
        for rates in {ticket.rates for ticket in self.tickets}:
            assert len(self._sent) <= (rates.requests_per_minute or math.inf)
            # A request with more tokens than the limit is sent alone.
            assert len(self._sent) == 1 or total <= (rates.tokens_per_minute or math.inf) + 1e-6
        return tokens

    def give_back(self, tokens: list[float]) -> None:
        """Forget a request that did not reach the server."""
        self._sent = deque((at, one) for at, one in self._sent if one is not tokens)


@dataclass
class Simulation:
    """Callers, a scheduler, a server and a clock. The callers' own limits are always checked."""

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
        self.user_limits = UserLimitsCheck()

    def spec(self, spec_id: bytes = b"spec", limits: Limits = LIMITS) -> RequestSpec:
        return RequestSpec(spec_id, 60.0, limits, "truncate", "fake:model", 2, {})

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), action))

    def submit(
        self,
        texts: list[str],
        *,
        size: int = 66,
        is_query: bool = False,
        max_in_flight: int = 16,
        retries: int = 6,
        rates: RateSettings = NO_LIMITS,
        deadline: float = float("inf"),
        spec: RequestSpec | None = None,
    ) -> Ticket:
        ticket = Ticket(
            rows=MatrixBuffer(len(texts), np.arange(len(texts))),
            pending=len(texts),
            is_query=is_query,
            max_retries=retries,
            max_in_flight=max_in_flight,
            rates=rates,
            deadline=deadline,
            cache=None,
            billing=CallBilling([Meter()]),
            wake=lambda: self.finished.append(ticket),
        )
        wants = [(text.encode(), text, size) for text in texts]
        self.user_limits.tickets.append(ticket)
        self.scheduler.submit(ticket, spec or self.spec(), wants, self.now)
        self.poll()
        return ticket

    def poll(self) -> None:
        again = True
        while again:
            actions = self.scheduler.poll(self.now)
            for request in actions.send:
                self._send(request)
            for request in actions.commit:
                self.scheduler.committed(request)
            for ticket in actions.wake:
                ticket.wake()
            again = bool(actions.commit)
        self._wake_at = actions.wake_at
        self.peak = max(self.peak, self.scheduler.in_flight)

    def _send(self, request: Request) -> None:
        known_tokens = self.user_limits.on_sent(request, self.now)
        texts = list(request.batch.texts)
        when, error, tokens, rate_limit_status = self.server.answer(
            texts, [item.size for item in request.items], self.now
        )

        def reply() -> None:
            if error is not None:
                if error.unsent:
                    self.user_limits.give_back(known_tokens)
                self.scheduler.failed(request, error, self.now)
            else:
                known_tokens[0] = min(tokens, request.sent.size * MAX_TOKENS_PER_ESTIMATED)
                status = self.server.rate_limit_status(self.now) if self.server.headers_at_reply else rate_limit_status
                vectors = np.ones((len(texts), 2), np.float32)
                self.scheduler.replied(request, Reply(vectors, tokens, (), status), self.now)
            self.poll()

        self.at(when, reply)

    def run(self, until: float = float("inf")) -> float:
        """Advance the clock until no event is left, or by `until` seconds; return the seconds that passed."""
        start = self.now
        until += start
        for _ in range(1_000_000):
            times = [at for at in (self._events[0][0] if self._events else None, self._wake_at) if at is not None]
            if not times or min(times) > until:
                self.now = self.now if until == float("inf") else until
                return self.now - start
            next_time = min(times)
            if next_time == self._wake_at and next_time > self.now:  # a real timer is late by up to a millisecond
                next_time += 0.001
                next_time = min([next_time, *(at for at, _, _ in self._events[:1])])
            self.now = max(self.now, next_time)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            else:
                self.poll()
        raise AssertionError("the simulation does not end")
