"""The worker: an actor of Ray Data that embeds blocks, several at a time."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pyarrow
import ray
from ray.data.extensions import ArrowTensorArray

from embedkit_core.common.errors import BudgetError, EmbedKitError, PartialFailureError
from embedkit_core.common.formatting import count_noun
from embedkit_core.common.usage import Usage
from embedkit_core.fleet.column_embedder import ColumnEmbedder
from embedkit_core.fleet.columns import read_column, set_table_columns
from embedkit_core.fleet.ray.ledger import Life

if TYPE_CHECKING:
    from embedkit_core.observability.progress import Progress

MAX_ATTEMPTS = 3
REPORT_SECONDS = 0.5  # between two reports of the usage while batches run


class Worker:
    """Embeds blocks of a dataset, and tells the ledger what it begins, ends and pays."""

    def __init__(self, embed: ColumnEmbedder, run: str, ledger: Any) -> None:
        self._embed = embed
        self._ledger = ledger
        self._life = Life(run, ray.get_runtime_context().get_actor_id() or "", uuid.uuid4().hex)
        self._lock = threading.Lock()
        self._reported = Usage()
        self._last_report = time.monotonic()

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Return the block with the column of vectors.

        Raises:
            EmbedKitError: A text failed, or the process of the worker has died too often during this block.
        """
        texts = read_column(table, self._embed.text_column)
        batch = hashlib.sha256("\0".join(map(str, texts)).encode("utf-8", "surrogatepass")).digest()
        attempts: Any = ray.get(self._ledger.begin.remote(self._life, batch))
        try:
            if attempts > MAX_ATTEMPTS:
                raise EmbedKitError(
                    f"A worker died {MAX_ATTEMPTS} times during a batch of {count_noun(len(texts), 'text')}, which is "
                    "given up. Ray's log of the worker has the reason; if it is the memory, use a smaller block_rows=."
                )
            vectors, errors = self._embed.embed_texts(texts, progress=self._report)
        except (PartialFailureError, BudgetError) as error:
            raise _without_rows(error) from None
        finally:
            ray.get(self._ledger.end.remote(self._life, batch, self._new_usage()))
        name = self._embed.vector_column
        columns = {name: ArrowTensorArray.from_numpy(vectors, column_name=name)}
        columns |= {name: pyarrow.array(messages, pyarrow.string()) for name, messages in errors.items()}
        return set_table_columns(table, columns)

    def _report(self, progress: Progress) -> None:  # noqa: ARG002 - of one batch
        """Report the usage of all batches, at most once in a while."""
        with self._lock:
            now = time.monotonic()
            if now - self._last_report < REPORT_SECONDS:
                return
            self._last_report = now
        self._ledger.report.remote(self._life, self._new_usage())

    def _new_usage(self) -> Usage:
        """Return the usage since the last report."""
        with self._lock:
            usage, reported = self._embed.usage, self._reported
            self._reported = usage
            return usage - reported


def _without_rows(error: PartialFailureError | BudgetError) -> EmbedKitError:
    """Return an error for the driver, without the vectors, which are in the cache."""
    error.result = None  # pyright: ignore[reportAttributeAccessIssue]  # only here; a None for users to check otherwise
    error.failed = {}
    return error
