"""Processes with an embedder each, on one cache folder, that tests command, stop and kill.

They are forked by a server process that has imported everything and has no threads, so that each starts in some ms.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import openai  # the SDK, which takes most of the start  # noqa: F401
import pytest

from embedkit_core import Embedder, EmbeddingResult
from embedkit_core.coordination.local.coordinator import LocalCoordinator  # noqa: F401
from embedkit_core.coordination.opening import LOCAL_FOLDER
from embedkit_core.engine.runtime import engine  # noqa: F401

from .openai_client import MODEL, expected
from .openai_server import OpenAIServer
from .waiting import wait_until

DIMENSIONS = 16
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["support.processes"])
_TESTS = str(Path(__file__).parents[1])


def _start_fork_server() -> None:
    """Start the process that forks the others. Python 3.11 gives it no module path, except in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([_TESTS, *filter(None, sys.path)]))
        ensure_running()


class WorkerError(Exception):
    """An exception in another process: the name of its type and its message."""


class Job:
    """A function that another process runs."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def result(self, timeout: float = 30.0) -> Any:
        """Return what the function returned. Raises WorkerError with its error, or TimeoutError, or EOFError."""
        if not self._connection.poll(timeout):
            raise TimeoutError(f"no result within {timeout} s")
        succeeded, value = self._connection.recv()
        if not succeeded:
            raise WorkerError(": ".join(value))
        return value


class Worker:
    """A process with an embedder. Its functions get the embedder as their first argument.

    Attributes:
        pid: Its process ID.
    """

    def __init__(self, server: OpenAIServer, cache: Path, method: str = "forkserver", **options: Any) -> None:
        defaults = {"base_url": server.base_url, "api_key": "test-key", "cache": cache, "dimensions": DIMENSIONS}
        _start_fork_server()
        self._connection, other = _context.Pipe()
        self._process = multiprocessing.get_context(method).Process(target=_serve, args=(other, defaults | options))
        self._process.start()
        other.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Job:
        """Start a function of a module. One process runs one function at a time."""
        self._connection.send((function, args, kwargs))
        return Job(self._connection)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function and return its result."""
        return self.start(function, *args, **kwargs).result()

    def warnings(self) -> list[str]:
        """Return the warnings that it has logged."""
        return list(self.run(_warnings))

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.join()

    def join(self) -> int | None:
        """Wait until it is gone. Return its exit code."""
        self._process.join(30)
        return self._process.exitcode

    def close(self) -> int | None:
        """End it as a program ends, and return its exit code; kill it if it does not end."""
        self._connection.close()
        self._process.join(15)
        if self._process.is_alive():
            self.kill()
        return self._process.exitcode


class Workers:
    """Starts processes on one cache folder, and ends them."""

    def __init__(self, server: OpenAIServer, cache: Path) -> None:
        self.server = server
        self.cache = cache
        self._started: list[Worker] = []

    def __call__(self, n: int = 1, cache: Path | None = None, **options: Any) -> list[Worker]:
        """Return `n` new processes."""
        started = [Worker(self.server, cache or self.cache, **options) for _ in range(n)]
        self._started += started
        return started

    def one(self, cache: Path | None = None, **options: Any) -> Worker:
        """Return a new process."""
        return self(1, cache, **options)[0]

    @property
    def coordination(self) -> Path:
        """The folder in which the processes coordinate."""
        return self.cache / LOCAL_FOLDER

    def close(self) -> None:
        """End all processes."""
        for worker in self._started:
            with suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)
        for worker in self._started:
            worker.close()


class Embedded(NamedTuple):
    """The result of a call in another process."""

    vectors: np.ndarray[Any, np.dtype[np.float32]]
    sent: int
    coalesced: int
    hits: int
    seconds: float


def embed(embedder: Embedder, texts: Sequence[str], **options: Any) -> Embedded:
    """Embed texts."""
    return embedded(lambda: embedder.embed(texts, **options))


def embedded(call: Callable[[], EmbeddingResult]) -> Embedded:
    """Return the result of a call."""
    began = time.monotonic()
    result = call()
    usage, seconds = result.usage, time.monotonic() - began
    return Embedded(np.asarray(result.vectors), usage.sent, usage.coalesced, usage.cache_hits, seconds)


def start_embedding(embedder: Embedder, texts: Sequence[str], **options: Any) -> None:
    """Embed texts on another thread; `finish_embedding` returns the result."""
    future: Future[Embedded] = Future()

    def run() -> None:
        try:
            future.set_result(embed(embedder, texts, **options))
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    _background.append(future)


def finish_embedding(_embedder: Embedder) -> Embedded:
    """Return the result of the oldest `start_embedding`."""
    return _background.pop(0).result()


def spend(embedder: Embedder, texts: Sequence[str]) -> tuple[int, str, str]:
    """Embed texts one by one until the budget refuses one. Return the number of those before, and the error."""
    for n, text in enumerate(texts):
        try:
            embed(embedder, [text])
        except Exception as error:
            return n, type(error).__name__, str(error)
    return len(texts), "", ""


def embed_with(_own: Embedder, embedder: Embedder, texts: Sequence[str]) -> Embedded:
    """Embed texts with an embedder that arrived as a pickle."""
    return embed(embedder, texts)


def in_fork(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a forked child. Return a function that waits for its result."""
    reader, writer = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            writer.send(function(*args))
            status = 0
        finally:
            os._exit(status)

    def result() -> Any:
        """Return the function's result."""
        writer.close()
        value = reader.recv()
        assert os.waitpid(pid, 0) == (pid, 0)
        return value

    result.pid = pid  # type: ignore[attr-defined]
    return result


def embed_in_children(embedder: Embedder, texts: Sequence[str], n: int) -> list[Embedded]:
    """Embed the same texts in this process and in `n` forked children. Return all results."""
    children = [in_fork(embed, embedder, texts) for _ in range(n)]
    return [embed(embedder, texts), *(child() for child in children)]


def wait_for_others(embedder: Embedder, n: int = 1) -> None:
    """Block until `n` texts of this process wait for another process."""
    wait_until(embedder, lambda account: len(account.scheduler.shared.waiting) >= n)


def check(result: Embedded, texts: Iterable[str]) -> None:
    """Check that each row is its text's vector."""
    np.testing.assert_array_equal(result.vectors, expected(texts, dimensions=DIMENSIONS))


def repaid(server: OpenAIServer) -> dict[str, int]:
    """Return the texts that were billed more than once, and how often."""
    return {text: n for text, n in server.billed_texts.items() if n > 1}


# In the process


_logged: list[str] = []
_background: list[Future[Embedded]] = []


def _warnings(_embedder: Embedder) -> list[str]:
    return _logged


def _serve(connection: Connection, arguments: dict[str, Any]) -> None:
    """Run the functions that arrive, until the other end is closed."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: _logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("embedkit_core").addHandler(handler)
    embedder = Embedder(MODEL, **arguments)
    while True:
        try:
            function, args, kwargs = connection.recv()
        except EOFError:
            atexit._run_exitfuncs()  # multiprocessing ends its children without them
            return
        try:
            outcome = (True, function(embedder, *args, **kwargs))
        except Exception as error:
            outcome = (False, (type(error).__name__, str(error)))
        try:
            connection.send(outcome)
        except BrokenPipeError:
            return
