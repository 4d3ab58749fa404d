"""The settings of a measurement and the interface of the measured clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "text-embedding-3-small"
KEY = "no-key-needed"

Rows = Any  # a float32 matrix, or lists of floats


@dataclass(frozen=True)
class Setting:
    """One measurement, in a process of its own."""

    client: str
    port: int
    task: str = "bulk"
    n_texts: int = 20_000
    slots: int = 16
    asynchronous: bool = False
    folder: str | None = None  # of the cache
    warm_up: bool = False  # one request before the clock starts
    options: dict[str, Any] = field(default_factory=dict)  # of the task

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The methods of a client; None if it has no such method."""

    embed: Callable[[list[str]], Rows] | None = None
    aembed: Callable[[list[str]], Awaitable[Rows]] | None = None
    query: Callable[[str], Any] | None = None
    aquery: Callable[[str], Awaitable[Any]] | None = None
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Client:
    """How to create a client, and what to import before the clock starts."""

    make: Callable[[Setting], Methods]
    imports: tuple[str, ...] = ()
    prepare: Callable[[Setting], None] | None = None  # other work before the clock starts


def folder_mb(folder: str) -> float:
    """Return the size of all files of a folder in MB."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6
