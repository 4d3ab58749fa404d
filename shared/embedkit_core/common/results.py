"""The result of an embedding call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from embedkit_core.common.float_lists import to_lists
from embedkit_core.common.types import InputType, Vectors
from embedkit_core.common.usage import Usage


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors in the order of the texts asked, and how they came about.

    `vectors` is float32 (n_texts, dimensions), or of the dtype asked for; the binary ones have eight dimensions in a
    number. Rows that failed are NaN, 0 where there is no NaN, and named in `failed`.
    `space` names the vector space: vectors of different spaces must not be compared or share an index.
    `truncated` names the positions of texts that were cut to the model's limit.
    """

    vectors: Vectors
    usage: Usage
    model: str
    input_type: InputType
    space: str
    truncated: tuple[int, ...] = ()
    failed: Mapping[int, Exception] = field(default_factory=dict)

    def __repr__(self) -> str:
        n, width = self.vectors.shape
        return f"EmbeddingResult({n} x {width}, model={self.model!r}, usage={self.usage}, failed={len(self.failed)})"

    def row(self, position: int) -> Vectors:
        """Give the vector of one text: float32 (dimensions,)."""
        vector: Vectors = self.vectors[position]
        return vector

    def to_lists(self) -> list[list[float] | None]:
        """Give the vectors as Python floats, with None for a row that failed."""
        rows: list[list[float] | None] = [*to_lists(self.vectors)]
        for position in self.failed:
            rows[position] = None
        return rows
