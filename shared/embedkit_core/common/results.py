"""The result of an embedding call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from operator import index
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from embedkit_core.common.float_lists import to_lists
from embedkit_core.common.types import InputType, Vectors
from embedkit_core.common.usage import Usage


class _TextIndex:
    """A slot that is neither pickled nor copied: the position of each text, made at the first look-up."""

    __slots__ = ("_positions",)

    _positions: dict[str, int]


@dataclass(frozen=True, slots=True)
class EmbeddingResult(_TextIndex):
    """Vectors of a call, in the order of its texts, with usage and failures.

    `np.asarray(result)` returns `vectors`. `len`, iteration, integers and slices are those of its rows;
    `result["a text"]` is the row of a text, and `"a text" in result` is True for a text of the call.

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
        texts: The texts of the call. Not in `repr`, and empty in the `result` of an error.

    Example:
        ```python
        result = embedder.embed(["Cats purr.", "Dogs bark."])
        scores = result @ result["Cats purr."]
        ```
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
    texts: Sequence[str] = ()

    def __repr__(self) -> str:
        n, width = self.vectors.shape
        return f"EmbeddingResult({n} x {width}, model={self.model!r}, usage={self.usage}, failed={len(self.failed)})"

    @property
    def cost_usd(self) -> Decimal | None:
        """Cost of the call in USD. None if some tokens have no known price."""
        return self.usage.cost_usd

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if dtype is not None and np.dtype(dtype) != self.vectors.dtype:
            if copy is False:
                raise ValueError(f"copy: vectors of {self.vectors.dtype} cannot be {np.dtype(dtype)} without a copy")
            return self.vectors.astype(dtype)
        return self.vectors.copy() if copy else self.vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[Vectors]:
        return iter(self.vectors)

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and text in self._text_positions()

    def __getitem__(self, key: str | SupportsIndex | slice) -> Vectors:
        """Return the row of a text or at a position, or the rows of a slice.

        Raises:
            KeyError: The text is not one of the call.
            TypeError: The key is no text, integer or slice, such as None.
            IndexError: There is no row at the position.
        """
        if isinstance(key, str):
            position = self._text_positions().get(key)
            if position is None:
                reason = "is not one of the texts of the call" if self.texts else "cannot be found: there are no texts"
                raise KeyError(f"the text {reason}")
            key = position
        rows: Vectors = self.vectors[key if isinstance(key, slice) else index(key)]  # not [None], which adds an axis
        return rows

    def _text_positions(self) -> dict[str, int]:
        """Return the position of the first occurrence of each text."""
        try:
            return self._positions
        except AttributeError:
            positions: dict[str, int] = {}
            for position, text in enumerate(self.texts):
                positions.setdefault(text, position)
            object.__setattr__(self, "_positions", positions)
            return positions

    def to_lists(self) -> list[list[float] | None]:
        """Return the vectors as lists of Python floats, with None in place of failed texts."""
        rows: list[list[float] | None] = [*to_lists(self.vectors)]
        for position in self.failed:
            rows[position] = None
        return rows
