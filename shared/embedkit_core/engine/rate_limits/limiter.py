"""A user's rate limiter, as requests meet it: one permit for each request, on a thread of our own."""

from __future__ import annotations

import inspect
import math
from typing import Any

from embedkit_core.common.errors import ProviderError
from embedkit_core.common.types import RateLimiter


class LimiterAdapter:
    """Holds a rate limiter; equal to another one around the same limiter, whatever the limiter's own equality.

    `most_tokens` is what the limiter can grant one request at most, where its `tokens_per_minute` says so: a bucket
    asked for more than it holds would never answer.
    """

    __slots__ = ("_takes_tokens", "limiter", "max_tokens")

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        try:
            self._takes_tokens = "num_tokens" in inspect.signature(limiter.acquire).parameters
        except ValueError:  # written in C
            self._takes_tokens = False
        try:
            most: Any = getattr(limiter, "tokens_per_minute", None)
        except Exception:  # it is the user's
            most = None
        known = isinstance(most, (int, float)) and math.isfinite(most)
        self.max_tokens = max(1, int(most)) if known else None

    def acquire(self, tokens: int) -> None:
        """Wait for one permit, for a request of so many tokens as we estimate; blocks.

        Raises:
            ProviderError: the limiter failed or refused, in its own way.
        """
        told = {"num_tokens": min(tokens, self.max_tokens or tokens)} if self._takes_tokens else {}
        try:
            permit = self.limiter.acquire(**told)
        except BaseException as error:  # it is the user's, and its message may hold anything
            raise ProviderError(
                f"rate_limiter.acquire() failed with {type(error).__name__}; nothing was sent"
            ) from None
        if inspect.isawaitable(permit):
            getattr(permit, "close", lambda: None)()
            raise ProviderError("rate_limiter.acquire() is async: give one that blocks; nothing was sent")
        if permit is False:
            raise ProviderError("rate_limiter.acquire() refused a permit instead of waiting for one; nothing was sent")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LimiterAdapter) and other.limiter is self.limiter

    def __hash__(self) -> int:
        return id(self.limiter)
