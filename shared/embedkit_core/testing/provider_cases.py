"""What the cases for providers share: what an author says of the model, and how far apart two vectors may be."""

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
    """What an author says of a model; each may be a property, so that it can name a server that a fixture started."""

    model: str = ""
    api_key: str | None = None
    other_model: str | None = None
    other_dimensions: int | None = None
    wrong_dimensions: int | None = None
    asymmetric: bool = False
    unit_length: bool = True
    tolerance: float = 1e-4
    bad_text: str = "a text that the far end refuses"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Further arguments of `Embedder`, as in {"base_url": ...}."""
        return {}

    @property
    def options(self) -> Mapping[str, Any]:
        """`provider_options` that the model takes."""
        return {}

    def requests_seen(self) -> int:
        """Give how many requests have reached the far end; override it where there is a way to tell."""
        skip(f"{type(self).__name__}.requests_seen() would tell how many requests reach the far end")

    def fail(self, kind: Failure | None) -> None:
        """Make the far end answer every request with a failure from now on, until `fail(None)`; override it.

        "bad_text" concerns requests that hold `bad_text` only. For a kind that the far end does not know, call
        `super().fail(kind)`, which skips the case.
        """
        skip(f"{type(self).__name__}.fail({kind!r}) would make the far end fail so")

    def embedder(self, **arguments: Any) -> Embedder:
        """Give an embedder for the model, without a cache unless one is given."""
        assert self.model, f"{type(self).__name__} names no model: model = 'provider:model'"
        base = {"model": self.model, "api_key": self.api_key, "cache": False}
        return Embedder(**{**base, **self.settings, **arguments})

    def requests_of(self, embedder: Embedder, before: int | None) -> int:
        """Give the requests since `before`, as the far end counts them; as an embedder does where `before` is None."""
        return embedder.usage.requests if before is None else self.requests_seen() - before

    def requests_before(self) -> int | None:
        """Give the requests so far; None where the far end cannot be asked."""
        known = type(self).requests_seen is not ProviderCases.requests_seen
        return self.requests_seen() if known else None

    def assert_same(self, rows: Vectors, expected: Vectors, meaning: str) -> None:
        """Fail with the meaning where two matrices differ by more than `tolerance` anywhere."""
        assert rows.shape == expected.shape, f"{meaning} ({rows.shape} is not {expected.shape})"
        apart = distance(rows, expected)
        assert apart <= self.tolerance, f"{meaning} (by {apart:.2g}, and tolerance = {self.tolerance:g})"

    def differ(self, one: Vectors, other: Vectors) -> bool:
        """Tell whether two vectors are not the same."""
        return one.shape != other.shape or distance(one, other) > self.tolerance


def distance(one: Vectors, other: Vectors) -> float:
    """Give how far apart two arrays of one shape are in any one number."""
    return float(np.max(np.abs(one - other), initial=0.0))


def numbered(n: int) -> list[str]:
    """Give so many distinct texts."""
    return [f"Item {i} of the list is worth {i * i} euros." for i in range(n)]


def alone(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Give the rows of texts that were sent one by one."""
    return np.vstack([embedder.embed([text]).vectors for text in texts])
