"""What all processes of the soak agree on."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.random  # now: half of it, in a child forked meanwhile, would be a defect of the soak's own
from support.openai_replies import vector_of

MODEL = "soak-model"
DIMENSIONS = 64
SLOTS = 8  # requests in flight of one process
TIMEOUT = 5.0  # seconds for one request
HANG = 150.0  # seconds after which a call counts as hanging: all retries of all its texts take less


def truth(text: str) -> np.ndarray:
    """The one vector a text may ever get: float32 (DIMENSIONS,)."""
    return vector_of(text, DIMENSIONS, DIMENSIONS, MODEL)


@dataclass(frozen=True)
class Settings:
    """What one process is told. `key` is its own: the server's record says by it who has sent what."""

    url: str
    folder: str  # of the cache
    events: str  # the file that every process adds lines to
    lineage: str  # processes of one lineage follow each other and ask for the same texts
    key: str
    seconds: float
    seed: int
    born: float  # time.monotonic() when the lineage began: from then on its texts grow in number
    children: bool = True
    defect: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def written(self) -> str:
        return json.dumps(asdict(self))

    def but(self, **changes: Any) -> Settings:
        return replace(self, **changes)


class Events:
    """A file of lines that many processes add to, also those that are killed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, "at": time.monotonic(), "pid": os.getpid(), **fields})
        os.write(self._file, f"{line}\n".encode())

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.path).read_text(encoding="utf-8").splitlines()]
