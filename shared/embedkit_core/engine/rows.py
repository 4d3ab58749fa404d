"""Where the rows of a call go: the matrix of its result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedkit_core.form import FLOATS, Form
from embedkit_core.types import Vectors


class Rows:
    """The result's matrix, (n, width) of the form asked for, allocated when the first row tells its width.

    `positions` maps the wants of a ticket to rows of the matrix. A row that is never put holds anything: `finished` is
    told which those are.
    """

    def __init__(self, n: int, positions: npt.NDArray[np.intp], form: Form = FLOATS) -> None:
        self.n = n
        self.positions = positions
        self.put_count = 0
        self.matrix: Vectors | None = None
        self._form = form

    @property
    def width(self) -> int | None:
        """The numbers in a row, None before the first."""
        return None if self.matrix is None else self.matrix.shape[1]

    def put(self, wants: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Copy single rows, of the form asked for, to where the result has them."""
        matrix = self._matrix(len(vectors[0]))
        for position, vector in zip(self.positions[wants].tolist(), vectors, strict=True):
            matrix[position] = vector
        self.put_count += len(wants)

    def put_wants(self, wants: Sequence[int], vectors: Vectors) -> None:
        """Copy the vectors of these wants to where the result has them."""
        self._matrix(vectors.shape[1])[self.positions[wants]] = vectors
        self.put_count += len(wants)

    def finished(self, origin: npt.NDArray[np.intp] | None, failed: Sequence[int], width: int) -> Vectors:
        """Give the matrix; `origin` says for each row which one it repeats, if any do.

        Rows that `failed` are NaN, and 0 where there is no NaN.
        """
        matrix = self._matrix(width)
        if failed:
            matrix[list(failed)] = np.nan if matrix.dtype.kind == "f" else 0
        if origin is not None:
            copies = np.flatnonzero(origin != np.arange(self.n))
            matrix[copies] = matrix[origin[copies]]
        return matrix

    def _matrix(self, width: int) -> Vectors:
        if self.matrix is None:
            self.matrix = np.empty((self.n, width), dtype=self._form.element)
        return self.matrix
