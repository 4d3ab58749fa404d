"""Files of lines and results in the folder of a journal: readable by their user only, deleted once collected."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LINES_SUFFIX = ".lines.jsonl"
RESULTS_SUFFIX = ".results.jsonl"
MAX_LINE_BYTES = 256 << 20  # of a result: a line of 256 texts as numbers has some MB


def lines_file(folder: Path, job: str, nonce: str) -> Path:
    """Return the file of the lines of a batch, with its texts."""
    return folder / f"{job}-{nonce}{LINES_SUFFIX}"


def results_file(folder: Path, job: str, nonce: str, number: int) -> Path:
    """Return the file for a result file of a batch."""
    return folder / f"{job}-{nonce}.{number}{RESULTS_SUFFIX}"


def create(file: Path) -> BinaryIO:
    """Create a file that only its user can read, in place of one that a dead process has left.

    Raises:
        OSError: It cannot be created.
    """
    file.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(file, flags, 0o600), "wb", buffering=1 << 20)


def finish(writer: BinaryIO) -> None:
    """Write a file to the disk and close it."""
    writer.flush()
    os.fsync(writer.fileno())
    writer.close()


def read_lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file without their line breaks, one in memory at a time; empty ones are left out.

    A line that is longer than any line of results comes in parts, none of which is valid JSON.

    Raises:
        OSError: The file cannot be read.
    """
    with file.open("rb", buffering=1 << 20) as lines:
        while line := lines.readline(MAX_LINE_BYTES):
            if stripped := line.strip():
                yield stripped


def write_to_disk(file: Path) -> None:
    """Write a file to the disk that another function has written."""
    with file.open("rb+") as written:
        os.fsync(written.fileno())


def delete(folder: Path, job: str, nonce: str = "") -> None:
    """Delete all files of a batch, or of a job."""
    for file in folder.glob(f"{job}-{nonce}*"):
        with suppress(OSError):
            file.unlink()


def exist(folder: Path, job: str) -> bool:
    """Return True if a job has files."""
    return next(folder.glob(f"{job}-*"), None) is not None


def sweep(folder: Path, job: str, nonces: Collection[str]) -> None:
    """Delete the files of a job that are not of these batches: a process has died before it wrote to the journal."""
    for file in folder.glob(f"{job}-*"):
        if file.name.removeprefix(f"{job}-").partition(".")[0] not in nonces:
            with suppress(OSError):
                file.unlink()
