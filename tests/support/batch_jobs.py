"""Batch jobs at the local server with OpenAI's API: embedders with small batches, and processes that die."""

import os
import ssl
import time
from collections import Counter
from collections.abc import Callable
from functools import cache, wraps
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit_core import Embedder
from embedkit_core.batches import files, runner, service
from embedkit_core.batches.results import RowWriter
from embedkit_core.cache.embedder_cache import EmbedderCache
from embedkit_core.coordination.journal import journal
from embedkit_core.coordination.journal.journal import Journal
from embedkit_core.coordination.journal.schema import FOLDER
from embedkit_core.providers.openai.batch import OpenAIBatches

from .embedders import openai_embedder
from .openai_batch_server import OpenAIBatchServer
from .openai_client import MODEL
from .openai_replies import vector_of

DIMENSIONS = 8


def use_small_batches(monkeypatch: pytest.MonkeyPatch, line_texts: int = 2, lines: int = 2) -> None:
    """Make batches small and the pauses of jobs short."""
    original = OpenAIBatches.__init__

    def init(self: OpenAIBatches, provider: Any) -> None:
        original(self, provider)
        self.limits = self.limits._replace(line_texts=line_texts, lines=lines)

    monkeypatch.setattr(OpenAIBatches, "__init__", init)
    for module, name in ((runner, "SEARCH_SECONDS"), (runner, "FIRST_RETRY_SECONDS"), (runner, "QUEUE_SECONDS")):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(service, "LOCK_PAUSE", 0.005)
    monkeypatch.setattr(ssl, "create_default_context", lambda *_args, **_options: _tls())  # an SDK client loads 20 ms
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(journal, "SYNCHRONOUS", "OFF")


@cache
def _tls() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def job_embedder(server: OpenAIBatchServer, folder: Path, **options: Any) -> Embedder:
    return openai_embedder(server, **{"dimensions": DIMENSIONS, "cache": str(folder), **options})


def vectors_of(texts: list[str], model: str = MODEL) -> np.ndarray:
    """Return the vectors that the server's normal endpoint returns."""
    name = model.partition(":")[2] or model
    rows = [vector_of(text, DIMENSIONS, OpenAIBatchServer.dimensions, name) for text in texts]
    return np.array(rows, dtype=np.float32)


def left_files(folder: Path) -> list[str]:
    """Return the names of files beside the journal and the locks."""
    names = (file.name for file in (folder / FOLDER).iterdir())
    return [name for name in names if not name.startswith("jobs.db") and not name.endswith(".lock")]


def cached(embedder: Embedder, texts: list[str]) -> list[bool]:
    """Return which texts the cache has."""
    return [embedder.explain(text, input_type="document").served_from != "provider" for text in texts]


def check_cache(server: OpenAIBatchServer, folder: Path, texts: list[str]) -> None:
    """Check that every cached vector is that of a normal request."""
    with job_embedder(server, folder) as embedder:
        found = dict(zip(texts, cached(embedder, texts), strict=True))
        hits = [text for text in texts if found[text]]
        if hits:
            np.testing.assert_array_equal(embedder.embed(hits).vectors, vectors_of(hits))
    assert server.requests == []


class Crash(BaseException):
    """The death of a process."""


class Deaths:
    """Ends "the process" at its steps: before each write of the journal and the cache, each change of files, and each
    request, and after each request. Nothing after that takes effect: each later step of the same process raises too.

    Attributes:
        at: How often a process has died at each step.
        most: How often processes die at each step.
        only: The beginning of the names of steps at which they die.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 2, only: str = "") -> None:
        self.at: Counter[str] = Counter()
        self.most, self.only = most, only
        self._is_dead = False
        self._generation = 0  # of the batch that was last saved
        writes = ("learn_queue", "save_job", "add_batch", "save_batch", "end_lines", "end_batch", "remove_job")
        requests = ("upload", "create", "find", "retrieve", "download", "cancel", "delete_upload")
        hooked: list[tuple[Any, tuple[str, ...]]] = [
            (Journal, writes),
            (OpenAIBatches, requests),
            (RowWriter, ("_write",)),
            (EmbedderCache, ("sync",)),
            (files, ("create", "write_to_disk", "delete", "sweep")),
        ]
        for owner, names in hooked:
            for name in names:
                monkeypatch.setattr(owner, name, self._hooked(name, getattr(owner, name)))

    def begin(self) -> None:
        """Begin another process."""
        self._is_dead = False

    def _step(self, name: str) -> None:
        label = f"{name} of generation {self._generation}"
        if not self._is_dead and self.at[label] < self.most and name.startswith(self.only):
            self.at[label] += 1
            self._is_dead = True
        if self._is_dead:
            raise Crash(label)

    def _hooked(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(original):

            @wraps(original)
            async def run(*args: Any, **options: Any) -> Any:
                self._step(f"before {name}")
                returned = await original(*args, **options)
                self._step(f"after {name}")
                return returned

            return run

        @wraps(original)
        def call(*args: Any, **options: Any) -> Any:
            record = args[1] if len(args) > 1 else None
            self._generation = getattr(record, "generation", self._generation)
            self._step(f"before {name} {getattr(record, 'step', getattr(record, 'state', ''))}")
            return original(*args, **options)

        return call


class JobClock:
    """The clock of jobs, which tests move forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        monkeypatch.setattr(runner.JobRunner.__init__, "__defaults__", (self.now,))

    def now(self) -> float:
        return time.time() + self.ahead
