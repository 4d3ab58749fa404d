"""Adapter around a user's rate limiter: one permit for each request, acquired on a thread of the library's own."""

from __future__ import annotations

import inspect
import math
from typing import Any

from embedkit_core.common.errors import ProviderError
from embedkit_core.common.types import RateLimiter


class LimiterAdapter:
    """A user's rate limiter. Two adapters are equal if they have the same limiter object.

    Attributes:
        limiter: The user's rate limiter.
        max_tokens: Its `tokens_per_minute`, None if it has none. A bucket never grants a request more than it holds.
    """

    __slots__ = ("_takes_tokens", "limiter", "max_tokens")

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        try:
            self._takes_tokens = "num_tokens" in inspect.signature(limiter.acquire).parameters
        except ValueError:  # written in C
            self._takes_tokens = False
        try:
            per_minute: Any = getattr(limiter, "tokens_per_minute", None)
        except Exception:  # a property of the user's class
            per_minute = None
        is_known = isinstance(per_minute, (int, float)) and math.isfinite(per_minute)
        self.max_tokens = max(1, int(per_minute)) if is_known else None

    def acquire(self, tokens: int) -> None:
        """Block until the limiter grants a permit for a request of so many estimated tokens.

        Raises:
            ProviderError: The limiter raised an error, refused the permit or is async.
        """
        arguments = {"num_tokens": min(tokens, self.max_tokens or tokens)} if self._takes_tokens else {}
        try:
            permit = self.limiter.acquire(**arguments)
        except BaseException as error:  # only the type: the message of user code may hold anything
            raise ProviderError(
                f"rate_limiter: acquire() failed with {type(error).__name__}. No request was sent."
            ) from None
        if inspect.isawaitable(permit):
            getattr(permit, "close", lambda: None)()
            raise ProviderError("rate_limiter: acquire() is async. Pass a blocking limiter; no request was sent.")
        if permit is False:
            raise ProviderError("rate_limiter: acquire() refused a permit instead of blocking. No request was sent.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LimiterAdapter) and other.limiter is self.limiter

    def __hash__(self) -> int:
        return id(self.limiter)
