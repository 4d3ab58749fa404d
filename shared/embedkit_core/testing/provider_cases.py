"""Base of the provider tests: attributes of the model, control of the server, and comparison of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from embedkit_core.common.types import Vectors
from embedkit_core.embedder import Embedder
from embedkit_core.testing.suite import Suite, skip

Failure: TypeAlias = Literal["auth", "quota", "bad_request", "bad_text", "bad_reply", "rate_limit", "unavailable"]

TEXTS = (
    "The cat sat on the mat.",
    "Interest rates rose by a quarter of a point in March.",
    "naïve café, 東京 and an emoji: 🙂",
    "def double(x):\n\treturn 2 * x\n",
    "  spaces before and after  ",
    "Photosynthesis turns light, water and carbon dioxide into sugar. " * 12,
    "x",
)


class ProviderCases(Suite):
    """Attributes and methods that a plugin author defines; attributes may be properties that use fixtures."""

    model: str = ""
    api_key: str | None = None
    other_model: str | None = None
    other_dimensions: int | None = None
    wrong_dimensions: int | None = None
    asymmetric: bool = False
    unit_length: bool = True
    tolerance: float = 1e-4
    bad_text: str = "a text that the server rejects"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Further arguments of `Embedder`, such as `base_url`."""
        return {}

    @property
    def options(self) -> Mapping[str, Any]:
        """`provider_options` that the model accepts."""
        return {}

    def requests_seen(self) -> int:
        """Return the number of requests the server has received. Override it if the server can be queried."""
        skip(f"{type(self).__name__} does not define requests_seen()")

    def fail(self, kind: Failure | None) -> None:
        """Make the server fail every request until `fail(None)`. Override it if the server can be controlled.

        "bad_text" applies only to requests that contain `bad_text`. For a kind that the server does not support, call
        `super().fail(kind)`, which skips the test.
        """
        skip(f"{type(self).__name__} does not define fail({kind!r})")

    def embedder(self, **arguments: Any) -> Embedder:
        """Return an embedder of the model, by default without a cache."""
        assert self.model, f"{type(self).__name__} has no model. Set model = 'provider:model'."
        base = {"model": self.model, "api_key": self.api_key, "cache": False}
        return Embedder(**{**base, **self.settings, **arguments})

    def requests_of(self, embedder: Embedder, before: int | None) -> int:
        """Return the number of requests since `before`, counted by the embedder if `before` is None."""
        return embedder.usage.requests if before is None else self.requests_seen() - before

    def requests_before(self) -> int | None:
        """Return the number of requests the server has received, or None if it cannot be queried."""
        is_defined = type(self).requests_seen is not ProviderCases.requests_seen
        return self.requests_seen() if is_defined else None

    def assert_same(self, rows: Vectors, expected: Vectors, meaning: str) -> None:
        """Fail with `meaning` if two matrices differ by more than `tolerance` in any number."""
        assert rows.shape == expected.shape, f"{meaning} (shape {rows.shape} instead of {expected.shape})"
        difference = max_difference(rows, expected)
        assert difference <= self.tolerance, f"{meaning} (difference {difference:.2g}, tolerance = {self.tolerance:g})"

    def differ(self, one: Vectors, other: Vectors) -> bool:
        """Return True if two vectors differ by more than `tolerance`."""
        return one.shape != other.shape or max_difference(one, other) > self.tolerance


def max_difference(one: Vectors, other: Vectors) -> float:
    """Return the largest absolute difference between two arrays of the same shape."""
    return float(np.max(np.abs(one - other), initial=0.0))


def numbered_texts(n: int) -> list[str]:
    """Return n distinct texts."""
    return [f"Item {i} of the list is worth {i * i} euros." for i in range(n)]


def embed_one_by_one(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Return the vectors of texts, each sent in its own request."""
    return np.vstack([embedder.embed([text]).vectors for text in texts])
