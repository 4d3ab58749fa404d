"""One index, one space: a guard for any vector store.

Vectors of two models look alike, rows of numbers, and have nothing to do with each other: a store that holds both gives
nearest neighbours that mean nothing, and no error. So a text's model is never chosen text by text, by what is cheap
today: it is chosen once for an index.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from embedkit_core.common.errors import ConfigurationError

UNKNOWN = "/unknown/"  # in the name of a space whose width no reply has told yet


class HasSpace(Protocol):
    """An embedder or a result."""

    @property
    def space(self) -> str:
        """The name of the vector space."""


class HasEmbedder(Protocol):
    """A class of LangChain's or LlamaIndex's, whose embedder it is."""

    @property
    def embedder(self) -> HasSpace:
        """The embedder."""


Named = TypeVar("Named", bound=HasSpace | HasEmbedder)


class SpaceGuard:
    """Refuses vectors of another space than those that an index holds.

    Keep `guard.space` beside the index, in its metadata say, and make the guard from it when the index is opened again.
    """

    def __init__(self, space: str | None = None) -> None:
        self.space = space

    def check(self, vectors: Named) -> Named:
        """Take the first space there is, and from then on no other; give what was checked.

        Raises:
            ConfigurationError: naming both spaces; or what is given names none, or does not know its own yet.
        """
        space = _space_of(vectors)
        if self.space is None:
            self.space = space
        elif space != self.space:
            raise ConfigurationError(
                f"this index holds vectors of the space {self.space!r}, and these are of {space!r}: they must not be "
                "compared. Embed with the index's model, or build a new index"
            )
        return vectors


def _space_of(given: Any) -> str:
    space = getattr(getattr(given, "embedder", given), "space", None)
    if not isinstance(space, str) or not space:
        raise ConfigurationError(f"{type(given).__name__} names no space: give an embedder, or one of its results")
    if UNKNOWN in space:
        raise ConfigurationError(
            f"the space {space!r} is not known in full until the model has answered: embed a text first, or say "
            "dimensions="
        )
    return space
