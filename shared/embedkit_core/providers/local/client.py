"""Client of a local model, which runs on one thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from embedkit_core.common.errors import EmbedKitError, ProviderError
from embedkit_core.common.threads import start_thread
from embedkit_core.common.types import Batch, Reply

T = TypeVar("T")


class Model(Protocol):
    """A model that is used by one thread."""

    name: str

    def embed(self, batch: Batch) -> Reply:
        """Return the vectors and tokens of a batch's texts."""
        ...

    def close(self) -> None:
        """Release the model."""


class LocalClient:
    """Client that runs a model on one thread."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = start_thread(self._run, "embedkit-model")

    async def embed(self, batch: Batch) -> Reply:
        """Encode the texts on the model's thread."""
        return await self._on_thread(lambda: self._model.embed(batch))

    async def aclose(self) -> None:
        """Stop the model's thread and processes after their pending work."""
        try:
            await self._on_thread(self._model.close)
        finally:
            self._jobs.put(None)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def answer(outcome: T | None, error: EmbedKitError | None) -> None:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(cast(T, outcome))

        def job() -> None:
            outcome: T | None = None
            failure: EmbedKitError | None = None
            try:
                outcome = work()
            except EmbedKitError as error:
                failure = error
            except Exception as error:  # its message may contain a text
                failure = ProviderError(f"The model {self._model.name} failed with {type(error).__name__}")
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(answer, outcome, failure)

        self._jobs.put(job)
        return await future

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
