"""Input files of a command: files on disk, and copies of standard input and pipes, which can be read repeatedly."""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from embedkit_core.common.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN = "-"


def expand_home(name: str) -> Path:
    """Return the path of a file name, with "~" expanded. The name of an unknown user stays, as in a shell."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file with texts.

    Attributes:
        name: Its name in error messages.
        suffix: Its suffix in lower case, which determines its format.
        content: Its path, or the temporary file with its copy.
    """

    name: str
    suffix: str
    content: Path | IO[bytes]

    @classmethod
    def on_disk(cls, path: Path) -> Self:
        """Return the input for a file that can be read repeatedly."""
        return cls(str(path), path.suffix.lower(), path)

    @classmethod
    def copied(cls, path: Path) -> Self:
        """Return the input for a pipe or device, which is copied to its end."""
        with path.open("rb") as stream:
            return cls(str(path), path.suffix.lower(), _copy(stream))

    @classmethod
    def standard_input(cls) -> Self:
        """Return the input for standard input, which is copied to its end."""
        if sys.stdin is None:
            raise ConfigurationError("Standard input is closed. Pass a file, or pipe texts into the command.")
        return cls("standard input", "", _copy(sys.stdin.buffer))

    def lines(self) -> io.TextIOWrapper:
        """Open the file as UTF-8, with or without a byte order mark; CSV keeps its line breaks."""
        binary = self.content.open("rb") if isinstance(self.content, Path) else io.BufferedReader(_Reader(self.content))
        return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="" if self.suffix == ".csv" else None)

    def close(self) -> None:
        """Delete the copy, if there is one."""
        if not isinstance(self.content, Path):
            self.content.close()


def _copy(stream: IO[bytes]) -> IO[bytes]:
    """Return a temporary file without a name, which disappears with the process however it ends."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - InputFile.close() closes it
    try:
        shutil.copyfileobj(stream, copy, 1 << 20)
    except BaseException:
        copy.close()
        raise
    return copy


class _Reader(io.RawIOBase):
    """Reads a file from its beginning, independently of its other readers."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._offset = file, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read bytes into `buffer`; return their number."""
        view = memoryview(buffer).cast("B")
        self._file.seek(self._offset)
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)
