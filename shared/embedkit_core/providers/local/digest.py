"""Digest of the files of a local model.

It identifies a model in cache keys, so that a moved copy shares the cached vectors and a changed model does not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DIGEST_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*.bin", "*.py")


def folder_digest(folder: Path, *others: str) -> str:
    """Return the SHA-256 of a model's configuration and weights, memoized by path, size and modification time.

    Args:
        folder: The folder of the model.
        *others: Patterns of further files, such as the ONNX file that is loaded.
    """
    patterns = (*DIGEST_FILES, *others)
    paths = sorted(path for path in _files(folder) if any(path.match(pattern) for pattern in patterns))
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in paths]
    return _digest(str(folder), tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model, including linked folders, which are also followed when the model is loaded."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := Path(parent).resolve()) in seen:  # a cycle of links
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names)


@cache
def _digest(folder: str, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, _, _ in files:
        with (Path(folder) / name).open("rb") as file:
            file_digest = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name}\0{file_digest}\n".encode())
    return digest.hexdigest()
