"""Vectors into a file, as they come: Parquet, JSONL or .npy; the file is there when it is whole."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from embedkit_core.cli.reading import Record
from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.types import Vectors

KINDS = (".parquet", ".jsonl", ".npy")
BLOCK = 1024  # rows that are written at once


class Sink(Protocol):
    """Where rows go."""

    def add(self, record: Record, vector: Vectors) -> None:
        """Take one row."""

    def finish(self) -> None:
        """Write what is left."""


class Output:
    """A file that takes rows under a name that no other run has, and has its own when all are there.

    Of several runs that write the same file at once, the last to finish has it. What a killed run has left is deleted
    by the next that finishes.

    Raises:
        ConfigurationError: its name ends with none of those known, or its folder is not there.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() not in KINDS:
            raise ConfigurationError(f"--output must end with one of {', '.join(KINDS)}, not {path!r}")
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"--output: there is no folder {str(self.path.parent)!r}")
        self.rows = 0

    def __enter__(self) -> Output:
        kinds: dict[str, type[_Parquet | _Jsonl | _Npy]] = {".parquet": _Parquet, ".jsonl": _Jsonl, ".npy": _Npy}
        self._partial, self._held = _begun(self.path)
        try:
            self._sink: Sink = kinds[self.path.suffix.lower()](self._partial)
        except BaseException:
            self._leave()
            raise
        return self

    def add(self, record: Record, vector: Vectors) -> None:
        """Take one row."""
        self._sink.add(record, vector)
        self.rows += 1

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._sink.finish()
            if kind is None:
                self._partial.replace(self.path)
                _sweep(self.path)
        finally:
            self._leave()

    def _leave(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._held.close()


def _begun(path: Path) -> tuple[Path, IO[bytes]]:
    """Make a file that rows of another go to, and hold it open, locked, so that others see that its run is alive."""
    while True:
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
        held = partial.open("xb")
        if not _lock(held, wait=True):
            held.close()
        if partial.exists():  # else another run took it for a leftover before it was locked
            return partial, held
        held.close()


def _sweep(path: Path) -> None:
    """Delete what runs that were killed have left of a file."""
    leftover = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}\.partial")
    with contextlib.suppress(OSError):  # it is somebody else's, or gone
        for left in path.parent.iterdir():
            if leftover.fullmatch(left.name):
                with left.open("rb") as file:
                    if _lock(file, wait=False):
                        left.unlink(missing_ok=True)


if sys.platform == "win32":

    def _lock(file: IO[bytes], *, wait: bool) -> bool:  # noqa: ARG001
        """Lock nothing: what is open can be neither moved nor deleted, so that leftovers stay."""
        return False

else:
    import fcntl

    def _lock(file: IO[bytes], *, wait: bool) -> bool:
        """Lock a file until it is closed, be it by death; False where another run has it, or the disk has none."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class _Jsonl:
    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def add(self, record: Record, vector: Vectors) -> None:
        row = {"id": record.id, "text": record.text, "vector": vector.tolist()}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        self._file.close()


class _Npy:
    """Rows go to a file without a name first, since .npy begins with how many there are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - finish() closes it
        self._shape: tuple[int, int] = (0, 0)
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def add(self, record: Record, vector: Vectors) -> None:  # noqa: ARG002 - a matrix has no place for names
        self._dtype = vector.dtype
        self._shape = (self._shape[0] + 1, len(vector))
        self._rows.write(np.ascontiguousarray(vector).tobytes())

    def finish(self) -> None:
        with self._rows, self._path.open("wb") as file:
            self._rows.seek(0)
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(self._rows, file, 1 << 20)


class _Parquet:
    """Columns id, text and vector, a list of numbers of the vectors' own type."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("Parquet", "cli") from None
        self._arrow = pyarrow
        self._path = path
        self._writer: Any = None
        self._records: list[Record] = []
        self._vectors: list[Vectors] = []

    def add(self, record: Record, vector: Vectors) -> None:
        self._records.append(record)
        self._vectors.append(vector)
        if len(self._records) == BLOCK:
            self._flush()

    def _flush(self) -> None:
        arrow = self._arrow
        matrix = np.stack(self._vectors) if self._vectors else np.empty((0, 1), np.float32)
        numbers = arrow.array(matrix.reshape(-1))
        vectors = arrow.FixedSizeListArray.from_arrays(numbers, matrix.shape[1])
        columns = [arrow.array([r.id for r in self._records], arrow.string())]
        columns.append(arrow.array([r.text for r in self._records], arrow.string()))
        table = arrow.Table.from_arrays([*columns, vectors], names=["id", "text", "vector"])
        if self._writer is None:
            self._writer = arrow.parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)
        self._records, self._vectors = [], []

    def finish(self) -> None:
        if self._records or self._writer is None:
            self._flush()
        self._writer.close()
