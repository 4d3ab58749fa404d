"""Texts from wherever they are: lines, JSONL, CSV, Parquet, folders, standard input; a few in memory at once."""

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
USUAL_ID = "id"  # the column of names that rows may lack
SHOWN = 20  # columns that are listed in an error
NO_UNICODE = "not valid Unicode (a lone surrogate)"
SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")


class Record(NamedTuple):
    """A text, by what it is called and where it came from: "in.jsonl, line 5"."""

    id: str
    text: str
    place: str


class RecordSource:
    """What a command's inputs hold, to be read as often as it takes; standard input is copied to a file first.

    Raises:
        ConfigurationError: an input is not there or of no known kind, or is the `output`.
    """

    def __init__(self, inputs: Sequence[str], column: str, id_column: str, *, output: str | None = None) -> None:
        self._column, self._id_column = column, id_column
        self._output = None if output is None else Path(output).expanduser()
        self._spool: Path | None = None
        self._places = [self._place(name) for name in inputs]

    def _place(self, name: str) -> Path:
        if name == STDIN:
            return self._spooled()
        place = Path(name).expanduser()
        if not place.exists():
            raise ConfigurationError(f"there is no file or folder {name!r}")
        if self._is_output(place):
            raise ConfigurationError(f"--output would overwrite the input {name!r}; give it another name")
        if place.is_file() and place.suffix.lower() not in SUFFIXES:
            raise ConfigurationError(f"{name!r} is none of {', '.join(SUFFIXES)}, a folder, or - for standard input")
        return place

    def _is_output(self, place: Path) -> bool:
        """Tell whether a file is what is to be written, by whatever name."""
        try:
            return self._output is not None and self._output.samefile(place)
        except OSError:  # there is no output yet
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
        """Give all texts in order; empty lines and files are left out, and the output where it is in a folder.

        Raises:
            ConfigurationError: a row is broken, naming the file and the line.
        """
        for place in self._places:
            if place.is_dir():
                yield from self._folder(place)
            else:
                yield from self._file(place)

    def texts(self) -> Iterator[str]:
        """Give the texts alone."""
        return (record.text for record in self.records())

    def _folder(self, folder: Path) -> Iterator[Record]:
        for path in sorted(folder.rglob("*")):
            if self._is_output(path):
                if not _is_written_here(path):
                    raise ConfigurationError(f"--output would overwrite {str(path)!r}; give it another name")
            elif path.is_file() and path.suffix.lower() in SUFFIXES:
                if path.suffix.lower() in (".txt", ".md"):
                    text = _read(path)
                    if text.strip():
                        yield Record(str(path.relative_to(folder)), text, str(path))
                else:
                    yield from self._file(path)

    def _file(self, path: Path) -> Iterator[Record]:
        kind, name = path.suffix.lower(), self._name(path)
        if kind == ".parquet":
            yield from self._parquet(path)
            return
        try:
            with path.open(encoding="utf-8-sig", newline="" if kind == ".csv" else None) as lines:
                if kind == ".csv":
                    yield from self._csv(lines, name)
                elif kind == ".jsonl":
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            place = f"{name}, line {number}"
                            yield self._row(_json(line, place), number, place)
                else:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            yield Record(str(number), line.rstrip("\r\n"), f"{name}, line {number}")
        except UnicodeDecodeError:
            raise ConfigurationError(f"{name} is not UTF-8") from None
        except OSError as error:
            raise ConfigurationError(f"{name} cannot be read ({error.strerror})") from None

    def _csv(self, lines: Iterable[str], name: str) -> Iterator[Record]:
        reader, begun = csv.reader(lines, strict=True), 1  # the line on which a row begins, which may have several
        columns: list[str] | None = None
        try:
            for values in reader:
                if columns is None:
                    columns = values
                elif values:
                    row = dict.fromkeys(columns, "") | dict(zip(columns, values, strict=False))
                    yield self._row(row, begun, f"{name}, line {begun}")
                begun = reader.line_num + 1
        except csv.Error as error:
            raise ConfigurationError(
                f"{name}, line {begun}: cannot be read as CSV ({error}); close its quotes, double those in a text"
            ) from None

    def _name(self, path: Path) -> str:
        return "standard input" if path == self._spool else str(path)

    def _row(self, row: Any, number: int, place: str) -> Record:
        if not isinstance(row, dict):
            raise ConfigurationError(f"{place}: expected one JSON object")
        name = self._id(row, place)
        if name is not None:
            place += f", id {name!r}"
        if self._column not in row:
            raise _no_column(place, "text", self._column, "--column names where the texts are", row)
        text = row[self._column]
        if flaw := _flaw(text):
            raise ConfigurationError(f"{place}: the text is {flaw}; mend the row or take it out")
        if name is not None and not _is_unicode(name):
            raise ConfigurationError(f"{place}: the id is {NO_UNICODE}; mend the row or take it out")
        return Record(str(number) if name is None else name, text, place)

    def _id(self, row: dict[str, Any], place: str) -> str | None:
        """Give a row's name, None where it has none; a column that was asked for is there."""
        if self._id_column not in row and self._id_column != USUAL_ID:
            raise _no_column(place, "id", self._id_column, "--id-column names where the ids are", row)
        name = row.get(self._id_column)
        return None if name in (None, "") else str(name)

    def _parquet(self, path: Path) -> Iterator[Record]:
        parquet = _parquet_module()
        try:
            file = parquet.ParquetFile(path)
        except Exception as error:
            raise ConfigurationError(f"{path} cannot be read as Parquet ({type(error).__name__})") from None
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield self._row(row, number, f"{path}, row {number}")


def _no_column(place: str, what: str, column: str, option: str, row: dict[str, Any]) -> ConfigurationError:
    columns = ", ".join(map(repr, itertools.islice(row, SHOWN))) + (", …" if len(row) > SHOWN else "")
    return ConfigurationError(f"{place}: no {what} in {column!r}; {option}, of these columns: {columns or 'none'}")


def _flaw(text: object) -> str | None:
    """Say why a text cannot be embedded, None where it can."""
    if not isinstance(text, str):
        return "null" if text is None else f"not a string but {type(text).__name__}"
    if not text or text.isspace():
        return "empty or only white space"
    return None if _is_unicode(text) else NO_UNICODE


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise ConfigurationError(f"{place}: expected one JSON object") from None


def _parquet_module() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingExtraError("Parquet", "cli") from None
    return parquet


def _is_written_here(path: Path) -> bool:
    """Tell whether a file in a folder of texts is what an earlier run has made of them, by its columns."""
    try:
        if path.suffix.lower() == ".parquet":
            names = _parquet_module().read_schema(path).names
        else:
            with path.open(encoding="utf-8") as lines:
                names = list(json.loads(next(lines, "{}")))
    except Exception:  # it is no such file, whatever else it may be
        return False
    return set(names) in ({"id", "text", "vector"}, set())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror})") from None
