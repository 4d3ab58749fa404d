"""LlamaIndex's rate limiters, if the installed version has them (0.14.16 and later)."""

from importlib.metadata import version
from typing import Any

import pytest
from packaging.version import Version

LlamaIndexLimiter: Any = object
LIMITERS: list[Any] = []

if Version(version("llama-index-core")) >= Version("0.14.16"):
    from llama_index.core.rate_limiter import BaseRateLimiter, SlidingWindowRateLimiter, TokenBucketRateLimiter

    LlamaIndexLimiter = BaseRateLimiter
    LIMITERS = [
        TokenBucketRateLimiter(requests_per_minute=1e6, tokens_per_minute=1e9),
        SlidingWindowRateLimiter(requests_per_minute=1e6, tokens_per_minute=1e9),
    ]

needs_limiters = pytest.mark.skipif(not LIMITERS, reason="no rate limiters in LlamaIndex before 0.14.16")
