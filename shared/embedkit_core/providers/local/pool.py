"""A local model in several processes, one per device, in a pool of sentence-transformers."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from embedkit_core.common.errors import BadRequestError, ProviderError, UnavailableError
from embedkit_core.common.types import Batch
from embedkit_core.providers.local.model import EncodedRows, character_lengths, loading_error, restore_order
from embedkit_core.providers.local.sentence_transformer import SentenceTransformerModel

POLL_SECONDS = 1.0  # between two checks that the processes are alive


class PooledModel(SentenceTransformerModel):
    """A model that is loaded in this process and copied to worker processes, which start at the first request."""

    _pool: Any = None  # dictionary of sentence-transformers with queues and processes

    def load(self) -> None:
        """Load the model to the CPU, from which it is copied to the processes.

        Token counts are not recorded: the processes tokenize the texts, and a model with a recorder cannot be pickled.
        """
        self.model = self.load_to("cpu")

    def encode_batch(self, batch: Batch, texts: list[str]) -> tuple[EncodedRows, dict[str, int]]:
        """Encode a batch in the processes, and count its tokens in this process meanwhile."""
        pool = self._start()
        lengths, size = character_lengths(texts, self.limit), self.options.batch_size
        positions = sorted(range(len(texts)), key=lambda position: -lengths[position])
        without_prompt = [batch.texts[position] for position in positions]
        with ThreadPoolExecutor(1, thread_name_prefix="embedkit-count") as counter:
            counted = counter.submit(self.measure, texts)
            rows = self.encode(batch.body, without_prompt, pool=pool, batch_size=size, chunk_size=size)
        return restore_order([rows], [positions]), counted.result()

    def to_provider_error(self, error: Exception, n_texts: int) -> ProviderError:
        """Return the error and stop the processes, so that their pending results do not answer the next request."""
        self._stop()
        return super().to_provider_error(error, n_texts)

    def close(self) -> None:
        """Stop the processes and release the model."""
        self._stop()
        super().close()

    def _start(self) -> Any:
        assert self.model is not None
        if self._pool is None:
            try:
                pool: Any = self.model.start_multi_process_pool([*self.options.device])
            except Exception as error:
                raise BadRequestError(f"Processes for {self.name} cannot be started: {loading_error(error)}") from None
            self._pool = pool | {"output": PoolOutput(pool["output"], pool["processes"])}
        return self._pool

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and self.model is not None:
            self.model.stop_multi_process_pool(pool)


class PoolOutput:
    """Output queue of a pool that raises an error if a process has ended.

    Before 6.2, sentence-transformers waits forever for the result of such a process. Later versions raise RuntimeError,
    which is the same as for a failure of the model and is not retried.
    """

    def __init__(self, output: Any, processes: Sequence[Any]) -> None:
        self._output = output
        self._processes = processes

    def get(self, timeout: float | None = None) -> Any:  # noqa: ARG002 - waits for as long as it takes
        """Wait for the next result.

        Raises:
            UnavailableError: A process has ended.
        """
        while True:
            try:
                return self._output.get(timeout=POLL_SECONDS)
            except queue.Empty:
                ended = [process.exitcode for process in self._processes if not process.is_alive()]
            if ended:
                raise UnavailableError(
                    f"{len(ended)} of {len(self._processes)} model processes have ended (exit code {ended[0]}). Check "
                    "that there is enough memory. A script with several devices must run its code under "
                    "if __name__ == '__main__'."
                )

    def close(self) -> None:
        """Close the queue."""
        self._output.close()
