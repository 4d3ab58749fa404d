"""A token bucket, and the rate limit headers of a provider."""

import math
import time
from dataclasses import dataclass, field

REQUESTS_PER_MINUTE = 10_000  # in headers only, never enforced


@dataclass
class Bucket:
    """Holds at most `burst` tokens and gains `rate` per second; starts full."""

    rate: float
    burst: float
    sends_limits: bool = True
    sends_retry_after: bool = True
    level: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.burst
        self._at = time.monotonic()

    def take(self, tokens: int) -> bool:
        """Take tokens if there are enough."""
        now = time.monotonic()
        self.level = min(self.burst, self.level + (now - self._at) * self.rate)
        self._at = now
        if tokens > self.level:
            return False
        self.level -= tokens
        return True

    def headers(self, refused_tokens: int = 0) -> str:
        """Return the headers of an answer, or of a refusal of `refused_tokens`."""
        lines = []
        if self.sends_limits:
            full_in = (self.burst - self.level) / self.rate
            lines = [
                f"x-ratelimit-limit-requests: {REQUESTS_PER_MINUTE}",
                f"x-ratelimit-remaining-requests: {REQUESTS_PER_MINUTE - 1}",
                f"x-ratelimit-reset-requests: {go_duration(60 / REQUESTS_PER_MINUTE)}",
                f"x-ratelimit-limit-tokens: {self.rate * 60:.0f}",
                f"x-ratelimit-remaining-tokens: {int(self.level)}",
                f"x-ratelimit-reset-tokens: {go_duration(full_in)}",
            ]
        if refused_tokens and self.sends_retry_after:
            lines.append(f"retry-after: {max(1, math.ceil((refused_tokens - self.level) / self.rate))}")
        return "".join(f"{line}\r\n" for line in lines)


def go_duration(seconds: float) -> str:
    """Return a duration in Go's format, as in "12ms", "1.5s" and "6m0s"."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
