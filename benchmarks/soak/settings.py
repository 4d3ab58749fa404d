"""Constants, settings and the event log that all processes of the soak test share."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.random  # here: a child that is forked during the import would have half of the module

from tests.support.openai_replies import vector_of

MODEL = "soak-model"
DIMENSIONS = 64
MAX_IN_FLIGHT = 8  # requests of one process
TIMEOUT_SECONDS = 5.0  # of one request
HANG_SECONDS = 150.0  # more than all retries of a call take

# Several processes of this lineage run at a time. All of them and their children embed the same texts on one account,
# under one rate limit. Those that start within some seconds have one budget, which is less than they could use.
SHARED, SHARED_PROCESSES = "shared", 3
REQUESTS_PER_MINUTE = 240
BUDGET_TOKENS, BUDGET_SECONDS = 50_000, 30.0  # a lost reply may cost a token for each byte


def expected_vector(text: str) -> np.ndarray:
    """Return the only correct vector of a text: float32 (DIMENSIONS,)."""
    return vector_of(text, DIMENSIONS, DIMENSIONS, MODEL)


@dataclass(frozen=True)
class Settings:
    """The settings of one process.

    Attributes:
        folder: the cache folder.
        events: the file that every process appends events to.
        lineage: processes of one lineage follow each other and embed the same texts.
        key: the API key of this process; it identifies the process in the server's record.
        started: `time.monotonic()` at the start of the run; the number of texts grows from then on.
        budget: the name of the budget that this process shares with others, "" for none.
    """

    url: str
    folder: str
    events: str
    lineage: str
    key: str
    seconds: float
    seed: int
    started: float
    children: bool = True
    budget: str = ""
    defect: str = ""

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    @property
    def is_shared(self) -> bool:
        return self.lineage == SHARED

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def replace(self, **changes: Any) -> Settings:
        return replace(self, **changes)


class Events:
    """A file of JSON lines that many processes append to; a killed process loses none of its lines."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"kind": kind, "at": time.monotonic(), "pid": os.getpid(), **fields})
        os.write(self._file, f"{line}\n".encode())

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.path).read_text(encoding="utf-8").splitlines()]
