"""The result of an embedding call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from embedkit_core.common.float_lists import to_lists
from embedkit_core.common.types import InputType, Vectors
from embedkit_core.common.usage import Usage


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors of a call, in the order of its texts, with usage and failures.

    Attributes:
        vectors: Shape (n_texts, dimensions), float32 or the requested dtype; "binary" and "ubinary" pack eight
            dimensions into a number. Rows of failed texts are NaN, or 0 in an integer dtype.
        usage: Texts, requests and tokens of the call, with their cost.
        model: The model as "provider:model".
        input_type: "document" or "query".
        space: Name of the vector space. Vectors of different spaces are not comparable and must not share an index.
        truncated: Positions of the texts that were truncated to the model's limit.
        failed: Error of each failed text, by position.
        empty: Positions of the empty texts, whose vectors are zero (`on_empty_text="zero"`).
        maybe_truncated: Positions of the texts that the server may have truncated without notice: their length, counted
            or estimated, is over the model's limit. Only for a server that may do so and a limit that is known.
    """

    vectors: Vectors
    usage: Usage
    model: str
    input_type: InputType
    space: str
    truncated: tuple[int, ...] = ()
    failed: Mapping[int, Exception] = field(default_factory=dict)
    empty: tuple[int, ...] = ()
    maybe_truncated: tuple[int, ...] = ()

    def __repr__(self) -> str:
        n, width = self.vectors.shape
        return f"EmbeddingResult({n} x {width}, model={self.model!r}, usage={self.usage}, failed={len(self.failed)})"

    def row(self, position: int) -> Vectors:
        """Return the vector of the text at `position`: a row of `vectors`."""
        vector: Vectors = self.vectors[position]
        return vector

    def to_lists(self) -> list[list[float] | None]:
        """Return the vectors as lists of Python floats, with None in place of failed texts."""
        rows: list[list[float] | None] = [*to_lists(self.vectors)]
        for position in self.failed:
            rows[position] = None
        return rows
