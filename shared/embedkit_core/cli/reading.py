"""Reading texts from files, folders and standard input, as a stream with little in memory."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from embedkit_core.common.errors import ConfigurationError, MissingExtraError

STDIN = "-"
DEFAULT_ID_COLUMN = "id"  # rows may lack this column
MAX_LISTED_COLUMNS = 20  # in an error message
NO_UNICODE = "not valid Unicode (a lone surrogate)"
SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")


class Record(NamedTuple):
    """A text with its id and its location, such as "in.jsonl, line 5"."""

    id: str
    text: str
    location: str


class RecordSource:
    """The records of a command's inputs, which can be read repeatedly; standard input is copied to a file first.

    Raises:
        ConfigurationError: An input does not exist, has an unsupported type, or is the `output`.
    """

    def __init__(self, inputs: Sequence[str], column: str, id_column: str, *, output: str | None = None) -> None:
        self._column, self._id_column = column, id_column
        self._output = None if output is None else Path(output).expanduser()
        self._spool: Path | None = None
        self._paths = [self._path(name) for name in inputs]

    def _path(self, name: str) -> Path:
        if name == STDIN:
            return self._spooled()
        path = Path(name).expanduser()
        if not path.exists():
            raise ConfigurationError(f"Input {name!r} does not exist.")
        if self._is_output(path):
            raise ConfigurationError(f"--output: would overwrite the input {name!r}. Use another name.")
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise ConfigurationError(
                f"Input {name!r} has an unsupported type. Use {', '.join(SUFFIXES)}, a folder, or - for standard input."
            )
        return path

    def _is_output(self, path: Path) -> bool:
        """Return True if a path is the output file, also by another name."""
        try:
            return self._output is not None and self._output.samefile(path)
        except OSError:  # the output does not exist yet
            return False

    def _spooled(self) -> Path:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt", delete=False) as file:
            for line in sys.stdin:
                file.write(line)
            self._spool = Path(file.name)
        return self._spool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Delete the copy of standard input."""
        if self._spool is not None:
            self._spool.unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Yield all records in order, skipping empty lines, empty files, and the output if it is in a folder.

        Raises:
            ConfigurationError: A row is invalid; the message contains the file and the line.
        """
        for path in self._paths:
            if path.is_dir():
                yield from self._folder(path)
            else:
                yield from self._file(path)

    def texts(self) -> Iterator[str]:
        """Yield the texts of all records."""
        return (record.text for record in self.records())

    def _folder(self, folder: Path) -> Iterator[Record]:
        for path in sorted(folder.rglob("*")):
            if self._is_output(path):
                if not _is_earlier_output(path):
                    raise ConfigurationError(f"--output: would overwrite {str(path)!r}. Use another name.")
            elif path.is_file() and path.suffix.lower() in SUFFIXES:
                if path.suffix.lower() in (".txt", ".md"):
                    text = _read(path)
                    if text.strip():
                        yield Record(str(path.relative_to(folder)), text, str(path))
                else:
                    yield from self._file(path)

    def _file(self, path: Path) -> Iterator[Record]:
        suffix, name = path.suffix.lower(), self._name(path)
        if suffix == ".parquet":
            yield from self._parquet(path)
            return
        try:
            with path.open(encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as lines:
                if suffix == ".csv":
                    yield from self._csv(lines, name)
                elif suffix == ".jsonl":
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            location = f"{name}, line {number}"
                            yield self._row(_json(line, location), number, location)
                else:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield Record(str(number), line.rstrip("\r\n"), f"{name}, line {number}")
        except UnicodeDecodeError:
            raise ConfigurationError(f"{name} is not UTF-8. Convert it to UTF-8.") from None
        except OSError as error:
            raise ConfigurationError(f"{name} cannot be read ({error.strerror}).") from None

    def _csv(self, lines: Iterable[str], name: str) -> Iterator[Record]:
        reader, first_line = csv.reader(lines, strict=True), 1  # first line of the row, which may span several
        columns: list[str] | None = None
        try:
            for values in reader:
                if columns is None:
                    columns = values
                elif values:
                    row = dict.fromkeys(columns, "") | dict(zip(columns, values, strict=False))
                    yield self._row(row, first_line, f"{name}, line {first_line}")
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise ConfigurationError(
                f"{name}, line {first_line}: cannot be read as CSV ({error}). "
                "Close every quote and double the quotes within a text."
            ) from None

    def _name(self, path: Path) -> str:
        return "standard input" if path == self._spool else str(path)

    def _row(self, row: Any, number: int, location: str) -> Record:
        if not isinstance(row, dict):
            raise ConfigurationError(f"{location}: expected one JSON object.")
        row_id = self._id(row, location)
        if row_id is not None:
            location += f", id {row_id!r}"
        if self._column not in row:
            raise _missing_column(location, "--column", self._column, row)
        text = row[self._column]
        if problem := _text_problem(text):
            raise ConfigurationError(f"{location}: the text is {problem}. Fix or remove the row.")
        if row_id is not None and not _is_unicode(row_id):
            raise ConfigurationError(f"{location}: the id is {NO_UNICODE}. Fix or remove the row.")
        return Record(str(number) if row_id is None else row_id, text, location)

    def _id(self, row: dict[str, Any], location: str) -> str | None:
        """Return the id of a row, or None if it has none. An explicit id column must exist."""
        if self._id_column not in row and self._id_column != DEFAULT_ID_COLUMN:
            raise _missing_column(location, "--id-column", self._id_column, row)
        row_id = row.get(self._id_column)
        return None if row_id in (None, "") else str(row_id)

    def _parquet(self, path: Path) -> Iterator[Record]:
        parquet = _parquet_module()
        try:
            file = parquet.ParquetFile(path)
        except Exception as error:
            raise ConfigurationError(f"{path} cannot be read as Parquet ({type(error).__name__}).") from None
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield self._row(row, number, f"{path}, row {number}")


def _missing_column(location: str, option: str, column: str, row: dict[str, Any]) -> ConfigurationError:
    columns = ", ".join(map(repr, itertools.islice(row, MAX_LISTED_COLUMNS))) + (
        ", …" if len(row) > MAX_LISTED_COLUMNS else ""
    )
    return ConfigurationError(f"{location}: no column {column!r} (columns: {columns or 'none'}). Set {option}.")


def _text_problem(text: object) -> str | None:
    """Return why a text cannot be embedded, or None if it can."""
    if not isinstance(text, str):
        return "null" if text is None else f"not a string (got {type(text).__name__})"
    if not text or text.isspace():
        return "empty or only white space"
    return None if _is_unicode(text) else NO_UNICODE


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(line: str, location: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ConfigurationError(f"{location}: expected one JSON object.") from None


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("Parquet", "cli") from None
    return parquet


def _is_earlier_output(path: Path) -> bool:
    """Return True if the columns of a file are those of an output of this command."""
    try:
        if path.suffix.lower() == ".parquet":
            names = _parquet_module().read_schema(path).names
        else:
            with path.open(encoding="utf-8") as lines:
                names = list(json.loads(next(lines, "{}")))
    except Exception:  # not a readable output file
        return False
    return set(names) in ({"id", "text", "vector"}, set())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8. Convert it to UTF-8.") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None
