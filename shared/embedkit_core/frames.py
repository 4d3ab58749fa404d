"""Columns of vectors in data frames of pandas, polars and pyarrow, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from embedkit_core.common.types import InputType
from embedkit_core.embedder import Embedder
from embedkit_core.fleet.column_embedder import checked_embedder, embed_values
from embedkit_core.fleet.columns import add_columns, read_column

if TYPE_CHECKING:
    from embedkit_core.observability.progress import ProgressOption

__all__ = ["embed_frame"]

Frame = TypeVar("Frame")


def embed_frame(
    frame: Frame,
    text_column: str,
    embedder: Embedder | str,
    *,
    vector_column: str = "vector",
    input_type: InputType = "document",
    error_column: str | None = None,
    progress: ProgressOption = None,
) -> Frame:
    """Embed a column of texts of a data frame. The package of the frame must be installed; no other is needed.

    Args:
        frame: A pandas.DataFrame, polars.DataFrame or pyarrow.Table, or a mapping of column names to arrays or lists.
        text_column: The name of the column with the texts.
        embedder: An `Embedder`, or the name of a model. For an object of an adapter, pass its `embedder`.
        vector_column: The name of the column to add. An existing one is replaced.
        input_type: "document" or "query".
        error_column: The name of a column to add for errors: the message for a text that has no vector, null for the
            others. The vector of such a text is NaN, or 0 in an integer dtype. By default, errors are raised. Those
            that concern all texts are raised in any case: a refused key, a used-up quota or budget.
        progress: As in `Embedder.embed`.

    Returns:
        A frame of the same type with the column of vectors: of the type Array in polars, lists of fixed size in
        pyarrow, NumPy arrays in pandas, an array of shape (n_texts, dimensions) in a mapping. The other columns, and
        the index of a pandas frame, are unchanged.

    Raises:
        ConfigurationError: The frame is of another type, for example lazy, or has no column of that name.
        InputError, PartialFailureError, ProviderError, BudgetError: As in `Embedder.embed`. Nulls cannot be embedded;
            for empty texts see `on_empty_text`.

    Example:
        ```python
        frame = pl.DataFrame({"text": ["Cats purr.", "Dogs bark."]})
        frame = embed_frame(frame, "text", Embedder("openai:text-embedding-3-small"))
        ```
    """
    embedder = checked_embedder(embedder, input_type, text_column, vector_column, error_column)
    texts = read_column(frame, text_column, argument="frame")
    vectors, errors = embed_values(embedder, texts, input_type, error_column, progress)
    added: Frame = add_columns(frame, {vector_column: vectors}, errors)
    return added
