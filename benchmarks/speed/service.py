"""The decisions and counts of the fake server; `server.py` has the sockets."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from benchmarks.speed.bucket import Bucket
from benchmarks.speed.library import MAX_ROWS, Library

MAX_TOKENS = 300_000  # of a request
MAX_TOKENS_PER_TEXT = 8192

NOT_SUMMED = ("billed", "lost", "arrivals")

Fate = Literal["answer", "error", "cut before", "cut after"]


@dataclass(frozen=True)
class Settings:
    """The server's behavior until the next reset; latencies in seconds."""

    latency: float = 0.05
    latency_per_token: float = 20e-6
    rate: float | None = None  # tokens per second; None: no bucket and no rate limit headers
    burst: float = 0.0
    sends_limits: bool = True
    sends_retry_after: bool = True
    errors: float = 0.0  # share of requests with a 500
    cuts: float = 0.0  # share of cut connections, half of them after the work
    seed: int = 0
    refused: tuple[int, ...] = ()  # numbers of requests, from 1, that get a 429 with `retry_after`
    retry_after: int = 1
    float_lists: bool = False  # answer with lists of numbers, even if the request asks for base64
    prepare: tuple[str, ...] = ()  # "floats", "tokens", "more": prepared before the measurement for some clients


@dataclass
class Stats:
    """Counts since the last reset."""

    requests: int = 0
    refused: int = 0
    errors: int = 0
    cut: int = 0
    invalid: int = 0
    tokens: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    first_request: float = 0.0
    last_request: float = 0.0
    billed: list[int] = field(default_factory=list)  # by text
    lost: list[int] = field(default_factory=list)  # billed, and the answer cut off
    arrivals: list[tuple[float, int, int, int]] = field(default_factory=list)  # time, texts, tokens, then in flight

    def summary(self) -> dict[str, Any]:
        """Return the counts and the billing of texts."""
        counts = {name: value for name, value in vars(self).items() if name not in NOT_SUMMED}
        return counts | {
            "billed": sum(self.billed),
            "billed_texts": sum(count > 0 for count in self.billed),
            "billed_again": sum(count - 1 for count in self.billed if count > 1),
            # Only a lost answer is a reason to send a text again.
            "billed_again_without_reason": sum(
                max(0, count - 1 - lost) for count, lost in zip(self.billed, self.lost, strict=True)
            ),
        }


@dataclass(frozen=True)
class Answer:
    """A reply after `delay` seconds; `body` is made then. Without a body the connection is cut."""

    status: int
    body: Callable[[], bytes] | None
    delay: float = 0.0
    headers: str = ""
    works: bool = False


class Service:
    """Answers requests, by the settings of the last reset."""

    def __init__(self) -> None:
        self.library = Library()
        self.reset({})

    def reset(self, settings: dict[str, Any]) -> None:
        """Reset the counts and apply settings."""
        self._settings = now = Settings(**settings)
        if "floats" in now.prepare:
            self.library.prepare_floats()
        if "tokens" in now.prepare:
            self.library.prepare_tokens()
        if "more" in now.prepare:
            self.library.prepare_more()
        self._bucket = Bucket(now.rate, now.burst, now.sends_limits, now.sends_retry_after) if now.rate else None
        self._rng = random.Random(now.seed)
        self.stats = Stats(billed=[0] * len(self.library), lost=[0] * len(self.library))

    def embed(self, body: bytes) -> Answer:
        """Return the answer to a request; bill it if work is done."""
        stats = self.stats
        stats.requests += 1
        stats.last_request = time.monotonic()
        stats.first_request = stats.first_request or stats.last_request
        request = orjson.loads(body)
        given = request["input"]
        texts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
        numbers = [self.library.number_of(text) for text in texts] if len(texts) <= MAX_ROWS else []
        each = [self.library.tokens[number] for number in numbers]
        tokens = sum(each)
        stats.arrivals.append((stats.last_request, len(texts), tokens, stats.in_flight))
        if refusal := _over_a_limit(len(texts), each, tokens):
            stats.invalid += 1
            return Answer(400, _error(refusal, "invalid_request_error"))
        if self._bucket and not self._bucket.take(tokens):
            stats.refused += 1
            return Answer(
                429,
                _error("Rate limit reached on tokens per min (TPM).", "tokens", "rate_limit_exceeded"),
                headers=self._bucket.headers(tokens),
            )
        if stats.requests in self._settings.refused:
            stats.refused += 1
            error = _error("Rate limit reached on tokens per min (TPM).", "tokens", "rate_limit_exceeded")
            return Answer(429, error, headers=f"retry-after: {self._settings.retry_after}\r\n")
        as_base64 = request.get("encoding_format") == "base64" and not self._settings.float_lists
        return self._work(numbers, tokens, as_base64=as_base64)

    def _work(self, numbers: list[int], tokens: int, *, as_base64: bool) -> Answer:
        fate = self._draw()
        if fate == "error":
            self.stats.errors += 1
            return Answer(500, _error("The server had an error while processing your request.", "server_error"))
        if fate == "cut before":
            self.stats.cut += 1
            return Answer(0, None)
        self._bill(numbers, tokens)
        delay = self._settings.latency + self._settings.latency_per_token * tokens
        if fate == "cut after":
            self.stats.cut += 1
            for number in numbers:
                self.stats.lost[number] += 1
            return Answer(0, None, delay, works=True)
        headers = self._bucket.headers() if self._bucket else ""
        reply = self.library.reply
        return Answer(200, lambda: reply(numbers, as_base64=as_base64, tokens=tokens), delay, headers, works=True)

    def _draw(self) -> Fate:
        drawn = self._rng.random()
        if drawn < self._settings.errors:
            return "error"
        if drawn < self._settings.errors + self._settings.cuts:
            return "cut before" if self._rng.random() < 0.5 else "cut after"
        return "answer"

    def _bill(self, numbers: list[int], tokens: int) -> None:
        stats = self.stats
        stats.tokens += tokens
        for counts in (stats.billed, stats.lost):  # texts that are new since the reset
            counts.extend([0] * (len(self.library) - len(counts)))
        for number in numbers:
            stats.billed[number] += 1
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)


def _over_a_limit(n_texts: int, each: list[int], tokens: int) -> str | None:
    if not 0 < n_texts <= MAX_ROWS:
        return f"'$.input' is invalid: array too long or empty. Expected 1 to {MAX_ROWS} inputs, got {n_texts}."
    if max(each) > MAX_TOKENS_PER_TEXT:
        return (
            f"This model's maximum context length is {MAX_TOKENS_PER_TEXT} tokens, however you requested {max(each)}."
        )
    if tokens > MAX_TOKENS:
        return f"Requested {tokens} tokens, max {MAX_TOKENS} tokens per request"
    return None


def _error(message: str, kind: str, code: str | None = None) -> Callable[[], bytes]:
    return lambda: orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
