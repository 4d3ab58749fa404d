"""Reading texts from files, folders and standard input, as a stream with little in memory."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from embedkit_core.cli.inputs import STDIN, InputFile, expand_home
from embedkit_core.cli.splitting import PER, split_text
from embedkit_core.common.errors import ConfigurationError, MissingExtraError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.validation import check_choice
from embedkit_core.tools.tasks import MAX_CSV_FIELD

DEFAULT_ID_COLUMN = "id"  # rows may lack this column
MAX_LISTED_COLUMNS = 20  # in an error message
MAX_LISTED_ROWS = 10
NO_UNICODE = "not valid Unicode (a lone surrogate)"
TEXT_SUFFIXES = (".txt", ".md")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".csv", ".parquet")


class Record(NamedTuple):
    """A text with its id and its location, such as "in.jsonl, line 5"."""

    id: str
    text: str
    location: str


class InvalidRow(NamedTuple):
    """A row that cannot be embedded; `is_empty` if its text is null, empty or white space."""

    location: str
    problem: str
    is_empty: bool = False


class InvalidRows:
    """The number of invalid rows, and the first ones."""

    def __init__(self) -> None:
        self._n, self._first = 0, list[InvalidRow]()

    def add(self, row: InvalidRow) -> None:
        """Count a row."""
        self._n += 1
        if self._n <= MAX_LISTED_ROWS:
            self._first.append(row)

    def check(self) -> None:
        """Check that there were none.

        Raises:
            ConfigurationError: There were some.
        """
        if not self._n:
            return
        more = self._n - len(self._first)
        listed = "; ".join(f"{row.location}: {row.problem}" for row in self._first) + (
            f"; {more:,} more" if more else ""
        )
        fix = "Fix or remove the row" if self._n == 1 else f"Fix or remove these {self._n:,} rows"
        skip = ", or add --skip-empty" if any(row.is_empty for row in self._first) else ""
        raise ConfigurationError(f"{listed}. {fix}{skip}.")


class RecordSource:
    """The records of a command's inputs, which can be read repeatedly.

    Entering it copies standard input and pipes, which can be read only once.

    Args:
        inputs: Names of files and folders; "-" is standard input.
        column: Column of the texts.
        id_column: Column of the ids.
        output: The output file, which is not read.
        per: What one text of a .txt or .md file and of standard input is, one of `PER`. By default it is a line, but
            a whole .md file, and a whole file in a folder.
        skip_empty: Skip rows whose text is null, empty or white space.
        keep_empty: Read these rows as empty texts.

    Attributes:
        skipped: Number of skipped rows in the last iteration.

    Raises:
        ConfigurationError: An input does not exist, has an unsupported type, or is the `output`.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        column: str,
        id_column: str,
        *,
        output: str | None = None,
        per: str | None = None,
        skip_empty: bool = False,
        keep_empty: bool = False,
    ) -> None:
        self._column, self._id_column = column, id_column
        self._per, self._skip_empty, self._keep_empty = per, skip_empty, keep_empty
        self._output = None if output is None else expand_home(output)
        self._paths = [None if name == STDIN else self._path(name) for name in inputs]
        self._inputs: list[Path | InputFile] = []  # folders and files
        self.skipped = 0
        if per is not None:
            check_choice("--per", per, PER)
            if all(path and path.is_file() and path.suffix.lower() not in TEXT_SUFFIXES for path in self._paths):
                raise ConfigurationError(
                    "--per: no input is a .txt or .md file, a folder or standard input. Remove it."
                )

    def _path(self, name: str) -> Path:
        path = expand_home(name)
        if not name or not path.exists():  # the path of "" is the current folder
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

    def __enter__(self) -> Self:
        for path in self._paths:
            if path is None:
                self._inputs.append(InputFile.standard_input())
            elif path.is_dir():
                self._inputs.append(path)
            else:
                self._inputs.append(InputFile.on_disk(path) if path.is_file() else InputFile.copied(path))
        return self

    def __exit__(self, *exc: object) -> None:
        """Delete the copies of standard input and of pipes."""
        for file in self._inputs:
            if isinstance(file, InputFile):
                file.close()

    def records(self) -> Iterator[Record]:
        """Yield all records in order, skipping empty lines, empty files, and the output if it is in a folder.

        Raises:
            ConfigurationError: A file cannot be read, or rows are invalid. Invalid rows do not end the iteration
                before its end, so that the message contains the file and line of the first ten.
        """
        invalid, self.skipped = InvalidRows(), 0
        for file in self._inputs:
            rows = self._folder(file) if isinstance(file, Path) else self._file(file)
            for row in rows:
                if isinstance(row, Record):
                    yield row
                elif row.is_empty and self._skip_empty:
                    self.skipped += 1
                else:
                    invalid.add(row)
        invalid.check()

    def texts(self) -> Iterator[str]:
        """Yield the texts of all records."""
        return (record.text for record in self.records())

    def _folder(self, folder: Path) -> Iterator[Record | InvalidRow]:
        for path in sorted(_contents(folder)):
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                continue
            if not self._is_output(path):
                yield from self._file(InputFile.on_disk(path), folder)
            elif not _is_earlier_output(path):
                raise ConfigurationError(f"--output: would overwrite {str(path)!r}. Use another name.")

    def _file(self, file: InputFile, folder: Path | None = None) -> Iterator[Record | InvalidRow]:
        """Yield the rows of a file, which is in `folder` if that was the input."""
        if file.suffix == ".parquet":
            yield from self._parquet(file)
            return
        try:
            with file.lines() as lines:
                if file.suffix == ".csv":
                    yield from self._csv(lines, file.name)
                elif file.suffix == ".jsonl":
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            location = f"{file.name}, line {number}"
                            yield self._row(_json(line, location), number, location)
                else:
                    yield from self._texts(lines, file, folder)
        except UnicodeDecodeError:
            raise ConfigurationError(f"{file.name} is not UTF-8. Convert it to UTF-8.") from None
        except OSError as error:
            raise ConfigurationError(f"{file.name} cannot be read ({error.strerror}).") from None

    def _texts(self, lines: Iterable[str], file: InputFile, folder: Path | None) -> Iterator[Record | InvalidRow]:
        """Yield the texts of a .txt or .md file, or of standard input.

        The id of a whole file is its name, that of a line or paragraph its line number, after the name in a folder.
        """
        per = self._per or ("file" if folder is not None or file.suffix == ".md" else "line")
        name = file.name if folder is None else str(Path(file.name).relative_to(folder))
        for number, text in split_text(lines, per, is_markdown=file.suffix == ".md"):
            if per == "file":
                row_id, location = name, file.name
            else:
                row_id, location = f"{name}#{number}" if folder else str(number), f"{file.name}, line {number}"
            if _is_unicode(row_id):
                yield Record(row_id, text, location)
            else:
                yield InvalidRow(file.name, f"the file name is {NO_UNICODE}")
                return

    def _csv(self, lines: Iterable[str], name: str) -> Iterator[Record | InvalidRow]:
        csv.field_size_limit(MAX_CSV_FIELD)
        reader, first_line = csv.reader(lines, strict=True), 1  # first line of the row, which may span several
        columns: list[str] | None = None
        try:
            for values in reader:
                location = f"{name}, line {first_line}"
                if columns is None:
                    columns = values
                    self._check_columns(columns, location)
                elif any(values[len(columns) :]):
                    yield InvalidRow(
                        location,
                        f"{len(values)} values for {count_noun(len(columns), 'column')}; quote a text with commas",
                    )
                elif values:
                    row = dict.fromkeys(columns, "") | dict(zip(columns, values, strict=False))
                    yield self._row(row, first_line, location)
                first_line = reader.line_num + 1
        except csv.Error as error:
            raise ConfigurationError(
                f"{name}, line {first_line}: cannot be read as CSV ({error}). "
                "Close every quote and double the quotes within a text."
            ) from None

    def _check_columns(self, columns: list[str], location: str) -> None:
        for column in (self._column, self._id_column):
            if (n := columns.count(column)) > 1:
                raise ConfigurationError(f"{location}: {n} columns are named {column!r}. Rename all but one.")

    def _row(self, row: Any, number: int, location: str) -> Record | InvalidRow:
        if not isinstance(row, dict):
            raise ConfigurationError(f"{location}: expected one JSON object.")
        row_id = self._id(row, location)
        if isinstance(row_id, (list, dict)):
            return InvalidRow(location, f"the id is not a string or a number (got {type(row_id).__name__})")
        name = str(number) if row_id in (None, "") else str(row_id)
        if row_id not in (None, ""):
            location += f", id {name!r:.80}"
        if self._column not in row:
            raise _missing_column(location, "--column", self._column, row)
        text = row[self._column]
        if problem := _text_problem(text):
            is_empty = text is None or (isinstance(text, str) and not text.strip())
            if not (is_empty and self._keep_empty):
                return InvalidRow(location, f"the text is {problem}", is_empty=is_empty)
        return (
            Record(name, text or "", location) if _is_unicode(name) else InvalidRow(location, f"the id is {NO_UNICODE}")
        )

    def _id(self, row: dict[str, Any], location: str) -> Any:
        """Return the id of a row, None if it has none. An explicit id column must exist."""
        if self._id_column not in row and self._id_column != DEFAULT_ID_COLUMN:
            raise _missing_column(location, "--id-column", self._id_column, row)
        return row.get(self._id_column)

    def _parquet(self, file: InputFile) -> Iterator[Record | InvalidRow]:
        for number, row in enumerate(_parquet_rows(file), 1):
            yield self._row(row, number, f"{file.name}, row {number}")


def _parquet_rows(file: InputFile) -> Iterator[dict[str, Any]]:
    parquet = _parquet_module()
    try:
        for batch in parquet.ParquetFile(file.content).iter_batches(1024):
            yield from batch.to_pylist()
    except Exception as error:
        raise ConfigurationError(f"{file.name} cannot be read as Parquet ({type(error).__name__}).") from None


def _contents(folder: Path) -> Iterator[Path]:
    """Yield the paths of all files in a folder and its subfolders, but not in links to folders.

    Raises:
        ConfigurationError: A folder cannot be read: its texts would be missing without notice.
    """

    def fail(error: OSError) -> None:
        raise ConfigurationError(f"{error.filename} cannot be read ({error.strerror}).") from None

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


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
    except RecursionError:
        raise ConfigurationError(f"{location}: the JSON object is nested too deeply.") from None
    except ValueError:
        raise ConfigurationError(f"{location}: expected one JSON object.") from None


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("Parquet", "parquet") from None
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
