"""One index, one space: a guard for any vector store.

Vectors of two models look alike, rows of numbers, and have nothing to do with each other: a store that holds both gives
nearest neighbours that mean nothing, and no error. So a text's model is never chosen text by text, by what is cheap
today: it is chosen once for an index.
"""

from __future__ import annotations

from typing import Protocol

from embedkit_core.errors import ConfigurationError


class HasSpace(Protocol):
    """An embedder or a result."""

    @property
    def space(self) -> str:
        """The name of the vector space."""


class SpaceGuard:
    """Refuses vectors of another space than those that an index holds.

    Keep `guard.space` beside the index, in its metadata say, and make the guard from it when the index is opened again.
    """

    def __init__(self, space: str | None = None) -> None:
        self.space = space

    def check(self, vectors: HasSpace) -> None:
        """Take the first space there is, and from then on no other.

        Raises:
            ConfigurationError: naming both spaces.
        """
        space = vectors.space
        if self.space is None:
            self.space = space
        elif space != self.space:
            raise ConfigurationError(
                f"this index holds vectors of the space {self.space!r}, and these are of {space!r}: they must not be "
                "compared. Embed with the index's model, or build a new index"
            )
