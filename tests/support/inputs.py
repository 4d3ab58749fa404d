"""Input files for the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

MODEL = "openai:text-embedding-3-small"
TEXTS = [f"line number {i}" for i in range(40)]


def lines(path: Path, texts: Iterable[str]) -> Path:
    """Write one text per line; return the path."""
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def pages(folder: Path) -> Path:
    """Write a folder of texts for comparisons; return its path."""
    target = folder / "pages"
    target.mkdir()
    for i in range(15):
        (target / f"{i}.txt").write_text(
            f"Title of page {i}\nThe body of page {i}, which goes on for a while about it."
        )
    return target
