"""Where the rows of a call go: the matrix of its result."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from embedkit_core.common.float_lists import ROWS_PER_SLICE, as_floats
from embedkit_core.common.types import Vectors
from embedkit_core.common.vectors import FLOAT32, VectorFormat


class MatrixBuffer:
    """The result's matrix, (n, width) of the form asked for, allocated when the first row tells its width.

    `positions` maps the wants of a ticket to rows of the matrix. A row that is never put holds anything: `finished` is
    told which those are.
    """

    def __init__(self, n: int, positions: npt.NDArray[np.intp], form: VectorFormat = FLOAT32) -> None:
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
            self.matrix = np.empty((self.n, width), dtype=self._form.numpy_dtype)
        return self.matrix


class ListBuffer:
    """The result as lists of Python floats. There is no matrix: a reply's rows are kept until lists are made of them.

    The engine puts rows, as into `Rows`, and calls `landed`; the caller makes the lists, which takes longer than all
    the rest, while the engine waits for the server.
    """

    def __init__(self, n: int, positions: npt.NDArray[np.intp], form: VectorFormat = FLOAT32) -> None:
        self.n = n
        self._form = form
        self.positions = positions
        self.put_count = 0
        self.landed: Callable[[], None] | None = None
        self._lists: list[list[float]] = [[]] * n
        self.width: int | None = None
        self._waiting: deque[tuple[list[int], Vectors]] = deque()

    def put(self, wants: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Make lists of single rows, of the form asked for."""
        self.width = len(vectors[0])
        self.put_count += len(wants)
        positions: list[int] = self.positions[wants].tolist()
        for position, vector in zip(positions, vectors, strict=True):
            self._lists[position] = as_floats(vector).tolist()

    def put_wants(self, wants: Sequence[int], vectors: Vectors) -> None:
        """Take the vectors of these wants, for the caller to make lists of; called on the engine's side."""
        self.width = vectors.shape[1]
        self.put_count += len(wants)
        self._waiting.append((self.positions[wants].tolist(), vectors))
        if self.landed is not None:
            self.landed()

    def slices(self) -> Iterator[None]:
        """Make lists of what has landed, a slice at each step."""
        while self._waiting:
            positions, vectors = self._waiting.popleft()
            for start in range(0, len(positions), ROWS_PER_SLICE):
                made = as_floats(vectors[start : start + ROWS_PER_SLICE]).tolist()
                for position, row in zip(positions[start : start + ROWS_PER_SLICE], made, strict=True):
                    self._lists[position] = row
                yield

    def finished(self, origin: npt.NDArray[np.intp] | None, failed: Sequence[int], width: int) -> list[list[float]]:
        """Give the lists, NaN where rows `failed` (0 where the type has none); `origin` says what a row repeats."""
        for _ in self.slices():
            pass
        for position in failed:
            self._lists[position] = [math.nan if self._form.numpy_dtype.kind == "f" else 0.0] * (self.width or width)
        if origin is not None:
            self._copy(origin)
        return self._lists

    def _copy(self, origin: npt.NDArray[np.intp]) -> None:
        for position in np.flatnonzero(origin != np.arange(self.n)).tolist():
            self._lists[position] = self._lists[origin[position]].copy()
