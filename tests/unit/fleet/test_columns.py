"""Batches of columns: mappings of arrays, pyarrow tables and pandas frames keep their type and their other columns."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from embedkit_core import ConfigurationError
from embedkit_core.fleet.columns import add_columns, read_column

TEXTS = ["a", None, "b"]
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)
NAN = float("nan")


def name_of(batch: object) -> str:
    """Return the name of a batch, the same in each process: pytest numbers equal ones."""
    return f"{type(batch).__module__.partition('.')[0]}-{type(batch).__name__}"


@pytest.mark.parametrize(
    "batch",
    [
        {"text": np.array(TEXTS, dtype=object)},
        {"text": TEXTS},
        {"text": pa.array(TEXTS)},
        pa.table({"text": TEXTS}),
        pa.table({"text": pa.array(TEXTS, pa.large_string())}),
        pa.table({"text": pa.chunked_array([["a", None], ["b"]]).dictionary_encode()}),
        pd.DataFrame({"text": TEXTS}),
        pd.DataFrame({"text": TEXTS}, index=[7, 7, 2]),
        pd.DataFrame({"text": pd.array(TEXTS, dtype="string")}),
        pd.DataFrame({"text": pd.Series(["a", NAN, "b"], dtype=object)}),
        pd.DataFrame({"text": pd.Series(TEXTS, dtype="category")}),
    ],
    ids=name_of,
)
def test_a_column_is_read_with_none_for_nulls(batch):
    assert read_column(batch, "text") == TEXTS


def test_an_array_of_strings_is_read_as_strings():
    values = read_column({"text": np.array(["a", "bc"])}, "text")
    assert values == ["a", "bc"]
    assert type(values[0]) is str


def test_a_mapping_gets_arrays():
    ids = np.array([1, 2, 3])
    batch = {"id": ids, "text": TEXTS}
    added = add_columns(batch, {"vector": VECTORS}, {"error": [None, "why", None]})
    assert added["id"] is ids
    assert added["vector"] is VECTORS
    assert added["error"].tolist() == [None, "why", None]
    assert list(batch) == ["id", "text"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8])
def test_a_table_gets_lists_of_fixed_size(dtype):
    table = pa.table({"id": [1, 2, 3], "text": TEXTS})
    added = add_columns(table, {"vector": VECTORS.astype(dtype)}, {"error": [None, "why", None]})
    assert added.column_names == ["id", "text", "vector", "error"]
    assert added.schema.field("vector").type == pa.list_(pa.from_numpy_dtype(dtype), 2)
    assert added.column("vector").to_pylist() == VECTORS.tolist()
    assert added.column("error").to_pylist() == [None, "why", None]


def test_a_frame_gets_arrays_and_keeps_its_index():
    frame = pd.DataFrame({"text": TEXTS}, index=[7, 7, 2])
    added = add_columns(frame, {"vector": VECTORS}, {"error": [None, "why", None]})
    assert added.index.tolist() == [7, 7, 2]
    assert [row.tolist() for row in added["vector"]] == VECTORS.tolist()
    assert added["error"].tolist() == [None, "why", None]
    assert list(frame.columns) == ["text"]


@pytest.mark.parametrize(
    "batch", [{"vector": [1, 2], "text": ["a", "b"]}, pa.table({"vector": [1, 2], "text": ["a", "b"]})], ids=name_of
)
def test_an_existing_column_is_replaced(batch):
    added = add_columns(batch, {"vector": VECTORS[:2]}, {})
    assert list(added if isinstance(added, dict) else added.column_names) == ["vector", "text"]
    assert np.array(list(added["vector"]) if isinstance(added, dict) else added["vector"].to_pylist()).shape == (2, 2)


@pytest.mark.parametrize("rows", [np.empty((0, 4), np.float32), np.empty((0, 0), np.float32)], ids=["4", "unknown"])
@pytest.mark.parametrize(
    "batch", [{"text": []}, pa.table({"text": pa.array([], pa.string())}), pd.DataFrame({"text": []})]
)
def test_a_batch_without_rows_stays_without_rows(batch, rows):
    assert read_column(batch, "text") == []
    assert len(add_columns(batch, {"vector": rows}, {"error": []})["vector"]) == 0


@pytest.mark.parametrize("batch", [{"id": [1]}, pa.table({"id": [1]}), pd.DataFrame({"id": [1]})], ids=name_of)
def test_a_missing_column_is_named_with_those_that_are_there(batch):
    with pytest.raises(ConfigurationError, match=r"text_column: there is no column 'text'\. The columns are 'id'\."):
        read_column(batch, "text")


@pytest.mark.parametrize("batch", [["a"], "text", None, pa.array(["a"])], ids=lambda batch: type(batch).__name__)
def test_other_batches_are_refused(batch):
    kind = f"{type(batch).__module__}.{type(batch).__name__}"  # also dask has a DataFrame
    with pytest.raises(ConfigurationError, match=rf"batch: must be a mapping .*\(got {kind}\)"):
        read_column(batch, "text")


@pytest.mark.parametrize(
    "batch",
    [pa.table([["a"], ["b"]], names=["text", "text"]), pd.DataFrame([["a", "b"]], columns=["text", "text"])],
    ids=["table", "frame"],
)
def test_two_columns_of_a_name_are_refused(batch):
    with pytest.raises(ConfigurationError, match=r"text_column: the batch has 2 columns 'text'\. Rename them\."):
        read_column(batch, "text")


def test_columns_of_several_levels_are_refused():
    frame = pd.DataFrame([["a"]], columns=pd.MultiIndex.from_tuples([("text", "body")]))
    with pytest.raises(ConfigurationError, match=r"there is no column 'text'\. The columns are \('text', 'body'\)\."):
        read_column(frame, "text")


@pytest.mark.parametrize("text", ["abc", b"abc"])
def test_a_row_is_not_a_batch(text):
    with pytest.raises(ConfigurationError, match=r"is one (str|bytes), so this is a row.*map_batches"):
        read_column({"text": text}, "text")
