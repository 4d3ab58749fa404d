"""Writing vectors to Parquet, JSONL or .npy files row by row. The output file appears when it is complete."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from embedkit_core.cli.inputs import expand_home
from embedkit_core.cli.reading import Record
from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.types import Vectors

OUTPUT_SUFFIXES = (".parquet", ".jsonl", ".npy")
ROWS_PER_WRITE = 1024  # to a Parquet file


class RecordWriter(Protocol):
    """Writer of one file format."""

    def add(self, record: Record, vector: Vectors) -> None:
        """Append a row."""

    def finish(self) -> None:
        """Write buffered rows and close the file."""

    def discard(self) -> None:
        """Close the file of a failed run without completing it."""


def check_writable(option: str, path: Path) -> None:
    """Check that a file can probably be written, before anything is sent.

    Raises:
        ConfigurationError: The path is a folder, its folder does not exist, or permission is missing.
    """
    if path.is_dir():
        raise ConfigurationError(f"{option}: {str(path)!r} is a folder. Use a file name.")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{option}: folder {str(path.parent)!r} does not exist.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigurationError(f"{option}: {str(path)!r} is not writable. Use another path.")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path of an output to a failed write in the block, which names the temporary file or none.

    Raises:
        OSError: The block raised one that has a number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None


class Output:
    """A file that is written under a temporary name and replaces `path` when all rows are there.

    Each run has its own temporary file, `NAME.<random>.partial`, in the folder of the output. If several runs write
    the same output at once, the last to finish wins. A failed run deletes its temporary file; a killed one leaves it.
    If the path is a link, the file that it refers to is replaced.

    Raises:
        ConfigurationError: The suffix is unknown, or the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = expand_home(path)
        if self.path.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ConfigurationError(f"--output: must end with one of {', '.join(OUTPUT_SUFFIXES)} (got {path!r}).")
        check_writable("--output", self.path)
        if self.path.exists() and not self.path.is_file():
            raise ConfigurationError(f"--output: {path!r} is not a regular file. Use another name.")
        self.rows = 0

    def __enter__(self) -> Output:
        writers: dict[str, type[_Parquet | _Jsonl | _Npy]] = {".parquet": _Parquet, ".jsonl": _Jsonl, ".npy": _Npy}
        self._target = Path(os.path.realpath(self.path))
        self._partial = self._target.with_name(f"{self._target.name}.{secrets.token_hex(4)}.partial")
        self._partial.touch(exist_ok=False)
        try:
            self._writer: RecordWriter = writers[self.path.suffix.lower()](self._partial)
        except BaseException:
            self._partial.unlink()
            raise
        return self

    def add(self, record: Record, vector: Vectors) -> None:
        """Append a row.

        Raises:
            OSError: The row cannot be written; the error names the output.
        """
        with naming(self.path):
            self._writer.add(record, vector)
        self.rows += 1

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        try:
            if error_type is None:
                with naming(self.path):
                    self._writer.finish()
                    self._partial.replace(self._target)
        finally:
            self._writer.discard()
            self._partial.unlink(missing_ok=True)


class _Jsonl:
    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8")

    def add(self, record: Record, vector: Vectors) -> None:
        row = {"id": record.id, "text": record.text, "vector": vector.tolist()}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        self._file.close()

    def discard(self) -> None:
        with suppress(OSError):  # buffered rows do not fit on the disk
            self._file.close()


class _Npy:
    """Buffers rows in a temporary file, since the .npy header contains their number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - finish() closes it
        self._shape: tuple[int, int] = (0, 0)
        self._dtype: np.dtype[Any] = np.dtype(np.float32)

    def add(self, record: Record, vector: Vectors) -> None:  # noqa: ARG002 - .npy stores no ids or texts
        self._dtype = vector.dtype
        self._shape = (self._shape[0] + 1, len(vector))
        self._rows.write(np.ascontiguousarray(vector).tobytes())

    def finish(self) -> None:
        with self._rows, self._path.open("wb") as file:
            self._rows.seek(0)
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(self._rows, file, 1 << 20)

    def discard(self) -> None:
        with suppress(OSError):  # buffered rows do not fit on the disk
            self._rows.close()


class _Parquet:
    """Writes the columns id, text and vector; the list items have the dtype of the vectors."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("Parquet", "parquet") from None
        self._arrow = pyarrow
        self._path = path
        self._writer: Any = None
        self._records: list[Record] = []
        self._vectors: list[Vectors] = []

    def add(self, record: Record, vector: Vectors) -> None:
        self._records.append(record)
        self._vectors.append(vector)
        if len(self._records) == ROWS_PER_WRITE:
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
        assert self._writer is not None
        self._writer.close()

    def discard(self) -> None:
        if self._writer is not None:
            with suppress(OSError, self._arrow.ArrowException):  # the file is closed or cannot be completed
                self._writer.close()
