"""Row buffers: where the engine puts the rows of a call."""

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
    """The result matrix, allocated when the width is known. Rows that are never put are uninitialized.

    Args:
        n: The number of rows.
        positions: The row of each text of the ticket, shape (n_texts,).
        vector_format: The dtype and dimensions of the rows.
    """

    def __init__(self, n: int, positions: npt.NDArray[np.intp], vector_format: VectorFormat = FLOAT32) -> None:
        self.n = n
        self.positions = positions
        self.put_count = 0
        self.matrix: Vectors | None = None
        self._format = vector_format

    @property
    def width(self) -> int | None:
        """The numbers per row, None before the first row."""
        return None if self.matrix is None else self.matrix.shape[1]

    def put(self, indices: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Copy rows to the positions of these texts."""
        matrix = self._matrix(len(vectors[0]))
        for position, vector in zip(self.positions[indices].tolist(), vectors, strict=True):
            matrix[position] = vector
        self.put_count += len(indices)

    def put_reply(self, indices: Sequence[int], vectors: Vectors) -> None:
        """Copy a reply's rows to the positions of these texts. Called on the engine's thread."""
        self._matrix(vectors.shape[1])[self.positions[indices]] = vectors
        self.put_count += len(indices)

    def assemble(
        self, origin: npt.NDArray[np.intp] | None, failed: Sequence[int], width: int, *, empty: Sequence[int] = ()
    ) -> Vectors:
        """Return the matrix, with duplicates, failures and empty texts filled in.

        Args:
            origin: For each row, the row that it repeats; None if there are no duplicates.
            failed: The rows to fill with NaN, or with 0 for integer dtypes.
            width: The numbers per row if no row was put.
            empty: The rows to fill with zeros.

        Returns:
            The rows, shape (n, width), in the dtype of the format.
        """
        matrix = self._matrix(width)
        if failed:
            matrix[list(failed)] = np.nan if matrix.dtype.kind == "f" else 0
        if origin is not None:
            copies = np.flatnonzero(origin != np.arange(self.n))
            matrix[copies] = matrix[origin[copies]]
        if empty:
            matrix[list(empty)] = self._format.zero
        return matrix

    def _matrix(self, width: int) -> Vectors:
        if self.matrix is None:
            self.matrix = np.empty((self.n, width), dtype=self._format.numpy_dtype)
        return self.matrix


class ListBuffer:
    """The result as lists of floats, made by the caller while the engine waits for the server.

    `put_reply` stores a reply's rows and calls `on_rows`; `slices` converts them to lists. There is no matrix.
    """

    def __init__(self, n: int, positions: npt.NDArray[np.intp], vector_format: VectorFormat = FLOAT32) -> None:
        self.n = n
        self._format = vector_format
        self.positions = positions
        self.put_count = 0
        self.on_rows: Callable[[], None] | None = None
        self._lists: list[list[float]] = [[]] * n
        self.width: int | None = None
        self._pending: deque[tuple[list[int], Vectors]] = deque()

    def put(self, indices: Sequence[int], vectors: Sequence[Vectors] | Vectors) -> None:
        """Convert rows to lists at the positions of these texts."""
        self.width = len(vectors[0])
        self.put_count += len(indices)
        positions: list[int] = self.positions[indices].tolist()
        for position, vector in zip(positions, vectors, strict=True):
            self._lists[position] = as_floats(vector).tolist()

    def put_reply(self, indices: Sequence[int], vectors: Vectors) -> None:
        """Store a reply's rows for `slices`. Called on the engine's thread."""
        self.width = vectors.shape[1]
        self.put_count += len(indices)
        self._pending.append((self.positions[indices].tolist(), vectors))
        if self.on_rows is not None:
            self.on_rows()

    def slices(self) -> Iterator[None]:
        """Convert the stored rows to lists; yield after each slice."""
        while self._pending:
            positions, vectors = self._pending.popleft()
            for start in range(0, len(positions), ROWS_PER_SLICE):
                made = as_floats(vectors[start : start + ROWS_PER_SLICE]).tolist()
                for position, row in zip(positions[start : start + ROWS_PER_SLICE], made, strict=True):
                    self._lists[position] = row
                yield

    def assemble(
        self, origin: npt.NDArray[np.intp] | None, failed: Sequence[int], width: int, *, empty: Sequence[int] = ()
    ) -> list[list[float]]:
        """Return the lists, filled in as by `MatrixBuffer.assemble`."""
        for _ in self.slices():
            pass
        for position in failed:
            self._lists[position] = [math.nan if self._format.numpy_dtype.kind == "f" else 0.0] * (self.width or width)
        for position in empty:
            self._lists[position] = [float(self._format.zero)] * (self.width or width)
        if origin is not None:
            self._copy(origin)
        return self._lists

    def _copy(self, origin: npt.NDArray[np.intp]) -> None:
        for position in np.flatnonzero(origin != np.arange(self.n)).tolist():
            self._lists[position] = self._lists[origin[position]].copy()
