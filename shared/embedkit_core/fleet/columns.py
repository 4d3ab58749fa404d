"""Batches of columns: a mapping of arrays, a pyarrow table, or a frame of pandas or polars.

Their packages are not imported: who has a table or a frame has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from embedkit_core.common.errors import ConfigurationError
from embedkit_core.common.types import Vectors

Batch: TypeAlias = Any  # a Mapping[str, array or list], a pyarrow.Table, a pandas or polars DataFrame


def read_column(batch: Batch, name: str, *, argument: str = "batch") -> list[Any]:
    """Return the values of a column as Python objects, with None for nulls. Errors name the `argument`.

    Raises:
        ConfigurationError: There is no such column or more than one, or the batch is of another type.
    """
    if _is_table(batch):
        _check_name(name, batch.column_names, argument)
        return _to_list(batch.column(name))
    if _is_frame(batch):
        _check_name(name, batch.columns.tolist(), argument)
        return _without_nulls(batch[name])
    if _is_polars(batch):
        _check_name(name, batch.columns, argument)
        values: list[Any] = batch[name].to_list()
        return values
    if isinstance(batch, Mapping):
        _check_name(name, list(batch), argument)
        column = batch[name]
        if isinstance(column, (str, bytes)):
            raise ConfigurationError(
                f"{argument}: the column {name!r} is one {type(column).__name__}, so this is a row. Pass batches of "
                "rows: for example, use map_batches instead of map."
            )
        return column.tolist() if isinstance(column, np.ndarray) else _to_list(column)
    raise ConfigurationError(
        f"{argument}: must be a mapping of column names to arrays, a pyarrow.Table, a pandas.DataFrame or a "
        f"polars.DataFrame (got {type(batch).__module__}.{type(batch).__qualname__})"
        f"{'. Call its collect() first.' * hasattr(batch, 'collect')}"
    )


def add_columns(batch: Batch, vectors: Mapping[str, Vectors], texts: Mapping[str, Sequence[str | None]]) -> Batch:
    """Return a copy of a batch with additional columns; columns with the same names are replaced.

    Args:
        batch: The batch, with n rows.
        vectors: By name, arrays of shape (n, numbers): an array in a mapping, a column of lists of fixed size in a
            table, a column of arrays in a frame of pandas, one of the type Array in a frame of polars.
        texts: By name, n texts or nulls.
    """
    if _is_table(batch):
        arrow = sys.modules["pyarrow"]
        lists = {
            name: arrow.FixedSizeListArray.from_arrays(arrow.array(np.ravel(rows)), rows.shape[1] or 1)  # 0: no rows
            for name, rows in vectors.items()
        }
        strings = {name: arrow.array(values, arrow.string()) for name, values in texts.items()}
        return set_table_columns(batch, lists | strings)
    if _is_frame(batch):
        pandas = sys.modules["pandas"]
        added = batch.copy()  # unlike `assign`, item assignment takes any name
        for name, values in {**vectors, **texts}.items():
            added[name] = pandas.Series([*values], batch.index, dtype=object)
        return added
    if _is_polars(batch):
        polars = sys.modules["polars"]
        series = [polars.Series(name, rows if rows.shape[1] else []) for name, rows in vectors.items()]
        series += [polars.Series(name, values, polars.String) for name, values in texts.items()]
        return batch.with_columns(series)
    return {**batch, **vectors, **{name: np.array(values, dtype=object) for name, values in texts.items()}}


def set_table_columns(table: Any, columns: Mapping[str, Any]) -> Any:
    """Return a copy of a pyarrow.Table with additional columns; columns with the same names are replaced."""
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def _is_table(batch: Batch) -> bool:
    return isinstance(batch, getattr(sys.modules.get("pyarrow"), "Table", ()))


def _is_frame(batch: Batch) -> bool:
    return isinstance(batch, getattr(sys.modules.get("pandas"), "DataFrame", ()))


def _is_polars(batch: Batch) -> bool:
    return isinstance(batch, getattr(sys.modules.get("polars"), "DataFrame", ()))


def _to_list(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist() if hasattr(column, "to_pylist") else list(column)
    return values


def _without_nulls(series: Any) -> list[Any]:
    return [None if null else value for value, null in zip(series.tolist(), series.isna().tolist(), strict=True)]


def _check_name(name: str, names: Sequence[Any], argument: str) -> None:
    if name not in names:
        refuse_name("text_column", name, names)
    if names.count(name) > 1:
        raise ConfigurationError(f"text_column: the {argument} has {names.count(name)} columns {name!r}. Rename them.")


def refuse_name(argument: str, name: str, names: Iterable[Any]) -> NoReturn:
    """Raise the error for an argument that names a column that does not exist."""
    listed = ", ".join(map(repr, names)) or "none"
    raise ConfigurationError(f"{argument}: there is no column {name!r}. The columns are {listed}.")
