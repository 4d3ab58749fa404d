"""Guard against mixing vector spaces in an index.

Vectors of different models are not comparable. A vector store that mixes them returns meaningless neighbors without an
error, so an index must use one model for all texts. No I/O.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from embedkit_core.common.errors import ConfigurationError

UNKNOWN_WIDTH = "/unknown/"  # in the name of a space before the first reply


class HasSpace(Protocol):
    """An embedder or an embedding result."""

    @property
    def space(self) -> str:
        """Name of the vector space."""
        ...


class HasEmbedder(Protocol):
    """An adapter for LangChain or LlamaIndex."""

    @property
    def embedder(self) -> HasSpace:
        """The core embedder."""
        ...


Checked = TypeVar("Checked", bound=HasSpace | HasEmbedder)


class SpaceGuard:
    """Rejects vectors of another space than that of an index.

    Store `guard.space` in the metadata of the index, and create the guard from it when the index is opened again.

    Example:
        >>> guard = SpaceGuard(index_metadata.get("space"))
        >>> guard.check(embedder.embed(["a text"]))
    """

    def __init__(self, space: str | None = None) -> None:
        self.space = space

    def check(self, vectors: Checked) -> Checked:
        """Check the space of a result, embedder or adapter, and return that object.

        The first check of a guard without a space sets it.

        Raises:
            ConfigurationError: The spaces differ, or the argument has no space or one whose width is not known yet.
        """
        space = _space_of(vectors)
        if self.space is None:
            self.space = space
        elif space != self.space:
            raise ConfigurationError(
                f"Vector spaces differ: the index has {self.space!r}, the vectors have {space!r}. They must not be "
                "compared. Embed with the model of the index, or build a new index."
            )
        return vectors


def _space_of(value: Any) -> str:
    space = getattr(getattr(value, "embedder", value), "space", None)
    if not isinstance(space, str) or not space:
        raise ConfigurationError(f"{type(value).__name__} has no vector space. Pass an embedder or one of its results.")
    if UNKNOWN_WIDTH in space:
        raise ConfigurationError(
            f"The width of the vector space {space!r} is unknown before the first reply. Embed a text first, or set "
            "dimensions=."
        )
    return space
