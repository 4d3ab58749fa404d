"""A callable that embeds a column of a batch, in the workers of any engine."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from embedkit_core.calls.plan import reason_for, unknown_width_error
from embedkit_core.common.errors import AuthenticationError, BudgetError, ConfigurationError, InputError, QuotaError
from embedkit_core.common.fork_safety import ForkLock
from embedkit_core.common.results import EmbeddingResult
from embedkit_core.common.types import InputType, Vectors
from embedkit_core.common.usage import Usage
from embedkit_core.common.validation import check_choice
from embedkit_core.config.roles import OnError
from embedkit_core.costs.billing import CallBilling
from embedkit_core.costs.meter import Meter
from embedkit_core.costs.tracker import active_trackers
from embedkit_core.embedder import Embedder
from embedkit_core.fleet.columns import Batch, add_columns, read_column

if TYPE_CHECKING:
    from embedkit_core.observability.progress import ProgressOption

OF_ALL_BATCHES = (AuthenticationError, BudgetError, QuotaError)  # raised even with an error column
INPUT_FIX = "Positions are those of the rows. With error_column=, such rows get a message instead of a vector."
FLUSH_SECONDS = 5.0  # that a batch waits until all caches of a list have its vectors

_embedders: dict[bytes, Embedder] = {}  # of this process, by pickle
_lock = ForkLock()


class ColumnEmbedder:
    """Embeds a column of texts, batch by batch, in the workers of an engine such as Ray, Dask or Spark.

    It is pickled in a few hundred bytes: the settings of the embedder, and never an API key, which each worker reads
    from its environment. A process has one embedder for all copies, so that they share connections, limits and cache.
    Calls are thread-safe. No engine is imported.

    Args:
        embedder: An `Embedder`, whose settings are used, or the name of a model.
        text_column: The name of the column with the texts.
        vector_column: The name of the column to add. An existing one is replaced.
        input_type: "document" or "query".
        error_column: The name of a column to add for errors: the message for a text that has no vector, null for the
            others. The vector of such a text is NaN, or 0 in an integer dtype. By default, errors are raised. Those
            that every batch would have are raised in any case: a refused key, a used-up quota or budget.

    Raises:
        ConfigurationError: An argument is invalid, or the embedder has something that cannot be sent to other
            processes: an API key, a budget without a name, a cache object.

    Example:
        ```python
        embed = ColumnEmbedder(Embedder("openai:text-embedding-3-small", cache="vectors"), "text", "vector")
        batch = embed({"text": np.array(["Cats purr.", "Dogs bark."])})
        batch["vector"].shape  # (2, 1536)
        ```
    """

    def __init__(
        self,
        embedder: Embedder | str,
        text_column: str = "text",
        vector_column: str = "vector",
        *,
        input_type: InputType = "document",
        error_column: str | None = None,
    ) -> None:
        embedder = checked_embedder(embedder, input_type, text_column, vector_column, error_column)
        embedder.check_can_be_sent()
        self._pickle = pickle.dumps(embedder)
        self.text_column, self.vector_column, self.error_column = text_column, vector_column, error_column
        self._input_type: InputType = input_type

    @property
    def embedder(self) -> Embedder:
        """The embedder of this process, which is made at first use."""
        return _embedder_of(self._pickle)

    @property
    def usage(self) -> Usage:
        """The usage of all copies in this process."""
        return self.embedder.usage

    def __call__(self, batch: Batch) -> Batch:
        """Embed the texts of a batch in one call, with as many requests at a time as the embedder allows.

        Args:
            batch: A mapping of column names to arrays or lists, a pyarrow.Table, or a DataFrame of pandas or polars.

        Returns:
            A batch of the same type with the column of vectors: in a mapping an array of shape (n_texts, dimensions),
            in a table lists of fixed size, in a frame arrays (in polars of the type Array). The other columns are
            unchanged.

        Raises:
            ConfigurationError: The batch is of another type, or has no column of that name.
            InputError, PartialFailureError, ProviderError, BudgetError: As in `Embedder.embed`; with an
                `error_column` only what concerns all batches. The vectors of the other texts are in the cache.
        """
        vectors, errors = self.embed_texts(read_column(batch, self.text_column))
        return add_columns(batch, {self.vector_column: vectors}, errors)

    def embed_texts(
        self, texts: list[Any], *, progress: ProgressOption = None
    ) -> tuple[Vectors, dict[str, list[str | None]]]:
        """Embed the values of a text column.

        Returns:
            The vectors, shape (n_texts, dimensions), and the column of errors by its name, if there is to be one.
        """
        embedder = self.embedder
        vectors, errors = embed_values(embedder, texts, self._input_type, self.error_column, progress)
        embedder.vector_cache.flush(FLUSH_SECONDS)
        return vectors, errors


def checked_embedder(
    embedder: Embedder | str, input_type: InputType, text_column: str, vector_column: str, error_column: str | None
) -> Embedder:
    """Return the embedder of an argument, which may be the name of a model, after a check of all arguments.

    Raises:
        ConfigurationError: One of the arguments is invalid.
    """
    if isinstance(embedder, str):
        embedder = Embedder(embedder)
    if not isinstance(embedder, Embedder):
        raise ConfigurationError(
            f"embedder: must be an embedkit_core.Embedder or the name of a model (got {type(embedder).__name__})"
        )
    _check_columns(text_column, vector_column, error_column)
    check_choice("input_type", input_type, get_args(InputType))
    return embedder


def _check_columns(text_column: str, vector_column: str, error_column: str | None) -> None:
    """Check the names of columns.

    Raises:
        ConfigurationError: One is no name, or two are equal.
    """
    names = {"text_column": text_column, "vector_column": vector_column, "error_column": error_column}
    for argument, name in names.items():
        if (name is not None or argument != "error_column") and (not isinstance(name, str) or not name):
            raise ConfigurationError(f"{argument}: must be the name of a column (got {name!r:.80})")
    if len(set(names.values())) < len(names):
        raise ConfigurationError(f"{', '.join(names)}: must be different (got {', '.join(map(repr, names.values()))})")


def embed_values(
    embedder: Embedder, texts: list[Any], input_type: InputType, error_column: str | None, progress: ProgressOption
) -> tuple[Vectors, dict[str, list[str | None]]]:
    """Embed the values of a text column.

    Args:
        embedder: The embedder, whose `on_error` is not used.
        texts: The values, None for nulls.
        input_type: "document" or "query".
        error_column: The name of the column of errors. None for none.
        progress: As in `Embedder.embed`.

    Returns:
        The vectors, shape (n_texts, dimensions), and the column of errors by its name, if there is to be one.
    """
    if error_column is not None:
        vectors, messages = _embed_valid(embedder, texts, input_type, progress)
        return vectors, {error_column: [messages.get(position) for position in range(len(texts))]}
    try:
        return _embed(embedder, texts, input_type, "raise", progress).vectors, {}
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}. {INPUT_FIX}", error.indices) from None


def _embed_valid(
    embedder: Embedder, texts: list[Any], input_type: InputType, progress: ProgressOption
) -> tuple[Vectors, dict[int, str]]:
    """Return the vectors, and the messages of the texts that have none, by position."""
    errors: dict[int, str] = {}
    valid = [*range(len(texts))]
    try:
        result = _embed(embedder, texts, input_type, "return", progress)
    except InputError as error:
        errors = {position: f"The text is {reason_for(texts[position])}." for position in error.indices}
        for meter in meters_of(embedder, input_type):
            meter.add(Usage(texts=len(errors), failed=len(errors)))
        valid = [position for position in valid if position not in errors]
        result = _embed(embedder, [texts[i] for i in valid], input_type, "return", progress)
    for failure in result.failed.values():
        if isinstance(failure, OF_ALL_BATCHES):
            raise failure
    width = result.vectors.shape[1]
    if texts and not width:
        raise next(iter(result.failed.values()), unknown_width_error(embedder.model, errors))
    errors |= {valid[position]: str(failure) for position, failure in result.failed.items()}
    if len(valid) == len(texts):
        return result.vectors, errors
    dtype = result.vectors.dtype
    vectors = np.full((len(texts), width), np.nan if dtype.kind == "f" else 0, dtype)
    vectors[valid] = result.vectors
    return vectors, errors


def _embed(
    embedder: Embedder, texts: list[Any], input_type: InputType, on_error: OnError, progress: ProgressOption
) -> EmbeddingResult:
    call = embedder._call(texts, input_type, progress=progress)
    return call.run("embed", partial(call.finish, on_error))


def meters_of(embedder: Embedder, input_type: InputType) -> Sequence[Meter]:
    """Return the meters of an embedder and of the `track_usage` blocks around the caller."""
    billing = CallBilling.of_call(
        *(embedder.meter, embedder.budget, embedder.price, active_trackers()),
        model=embedder.model,
        input_type=input_type,
    )
    return billing.meters


def _embedder_of(pickled: bytes) -> Embedder:
    """Return the embedder of this process for a pickle."""
    with _lock.lock:
        found = _embedders.get(pickled)
    if found is None:
        found = pickle.loads(pickled)  # noqa: S301 - made by the constructor; outside of the lock, it imports modules
        found.settings = replace(found.settings, progress=None)
        with _lock.lock:
            found = _embedders.setdefault(pickled, found)
    return found
