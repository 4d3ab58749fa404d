"""A local model in several processes, one for each device named, by sentence-transformers' own pool."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from embedkit_core.common.errors import BadRequestError, ProviderError, UnavailableError
from embedkit_core.common.types import Batch
from embedkit_core.providers.local.model import EncodedRows, LocalModel, characters, in_order, said

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WATCH_SECONDS = 1.0  # between two looks at whether the processes are alive


class PooledModel(LocalModel):
    """A model that is loaded here, and shared out to processes that are started with the first request."""

    _pool: Any = None  # a dictionary of the library's: its queues and processes

    def load(self, device: str | None = None) -> SentenceTransformer:  # noqa: ARG002 - each process has its own
        """Load the model to where it is handed over from."""
        return super().load("cpu")

    def listen(self, model: SentenceTransformer) -> None:
        """Hear nothing: the texts are tokenized elsewhere, and what listens cannot be sent there."""

    def answer(self, batch: Batch, texts: list[str], limit: float) -> tuple[EncodedRows, dict[str, int]]:
        """Give the rows and lengths of texts; these are counted here while the processes are at work."""
        pool = self._started()
        lengths, size = characters(texts, limit), self.options.batch_size
        places = sorted(range(len(texts)), key=lambda place: -lengths[place])
        given = [batch.texts[place] for place in places]
        with ThreadPoolExecutor(1, thread_name_prefix="embedkit-count") as counter:
            counted = counter.submit(self.measure, texts)
            rows = self.encode(batch.body, given, pool=pool, batch_size=size, chunk_size=size)
        return in_order([rows], [places]), counted.result()

    def failure(self, error: Exception, n_texts: int) -> ProviderError:
        """End the processes too: what they still compute must not answer the next request, which starts others."""
        self._stop()
        return super().failure(error, n_texts)

    def close(self) -> None:
        """End the processes and let go of the model."""
        self._stop()
        super().close()

    def _started(self) -> Any:
        assert self.model is not None
        if self._pool is None:
            try:
                pool: Any = self.model.start_multi_process_pool([*self.options.device])
            except Exception as error:
                raise BadRequestError(f"no processes can be started for {self.name}: {said(error)}") from None
            self._pool = pool | {"output": Answers(pool["output"], pool["processes"])}
        return self._pool

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and self.model is not None:
            self.model.stop_multi_process_pool(pool)


class Answers:
    """The queue of a pool's answers, which reports a process that has ended.

    sentence-transformers waits forever for the answer of such a process before 6.2, and later raises a RuntimeError,
    which cannot be told from a failure of the model and is not retried.
    """

    def __init__(self, answers: Any, processes: Sequence[Any]) -> None:
        self._answers = answers
        self._processes = processes

    def get(self, timeout: float | None = None) -> Any:  # noqa: ARG002 - one that is late is waited for
        """Wait for the next answer.

        Raises:
            UnavailableError: a process has ended.
        """
        while True:
            try:
                return self._answers.get(timeout=WATCH_SECONDS)
            except queue.Empty:
                ended = [process.exitcode for process in self._processes if not process.is_alive()]
            if ended:
                raise UnavailableError(
                    f"{len(ended)} of a model's {len(self._processes)} processes have ended, exit code {ended[0]}: was "
                    "there too little memory? A script that names several devices must do its work under "
                    "if __name__ == '__main__'"
                )

    def close(self) -> None:
        """Let go of the queue."""
        self._answers.close()
