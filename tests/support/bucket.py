"""Token bucket of a rate-limited server."""

import time
from dataclasses import dataclass

from .openai_replies import go_duration


@dataclass
class Bucket:
    """A bucket that refills by `rate` tokens a second up to `burst`; a silent one sends no headers."""

    rate: float
    burst: float
    silent: bool = False

    def __post_init__(self) -> None:
        self._level, self._at = self.burst, time.monotonic()

    def _fill(self) -> None:
        now = time.monotonic()
        self._level, self._at = min(self.burst, self._level + self.rate * (now - self._at)), now

    def take(self, tokens: int) -> bool:
        self._fill()
        enough = tokens <= self._level
        self._level -= tokens if enough else 0
        return enough

    def headers(self) -> dict[str, str]:
        if self.silent:
            return {}
        self._fill()
        return {
            "x-ratelimit-limit-tokens": str(round(self.burst)),
            "x-ratelimit-remaining-tokens": str(int(self._level)),
            "x-ratelimit-reset-tokens": go_duration((self.burst - self._level) / self.rate),
        }
