"""A data frame gets a column of vectors and stays a frame of its kind."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.embedders import fake_embedder

from embedkit_core import ConfigurationError, InputError
from embedkit_core.fleet import ColumnEmbedder
from embedkit_core.fleet.columns import add_columns
from embedkit_core.frames import embed_frame
from embedkit_core.testing import FakeServer

TEXTS = ["Cats purr.", None, "Dogs bark.", " "]
KINDS = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "pyarrow": pa.table, "mapping": dict}
COLUMNS = {"pandas": pd.Series, "polars": lambda texts: pl.Series("text", texts), "pyarrow": pa.array}


@pytest.fixture
def embedder():
    return fake_embedder(FakeServer(dimensions=4))


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_gets_the_vector_of_its_text_or_a_message(embedder, kind):
    frame = KINDS[kind]({"id": [1, 2, 3, 4], "text": TEXTS})
    added = embed_frame(frame, "text", embedder, vector_column="v", error_column="error")
    assert type(added) is type(frame)
    names = added.column_names if kind == "pyarrow" else list(added)
    assert [str(getattr(name, "name", name)) for name in names] == ["id", "text", "v", "error"]
    read = (lambda name: added[name].to_pylist()) if kind == "pyarrow" else (lambda name: list(added[name]))
    vectors = np.array([np.asarray(row) for row in read("v")])
    assert (vectors.dtype.kind, vectors.shape) == ("f", (4, 4))
    assert np.array_equal(vectors[[0, 2]], embedder.embed([TEXTS[0], TEXTS[2]]).vectors)
    assert np.isnan(vectors[[1, 3]]).all()
    assert [error is None for error in read("error")] == [True, False, True, False]
    assert read("error")[1].startswith("The text is not a string")
    assert (embedder.usage.failed, embedder.settings.on_error) == (2, "raise")
    assert embedder.dimensions == 4
    assert all(finalizer.alive for finalizer in embedder._accounts.values())  # so the connection stays open
    with pytest.raises(InputError, match=r"2 of 4 texts cannot be embedded.* those of the rows") as failed:
        embed_frame(frame, "text", embedder)
    assert failed.value.indices == (1, 3)


def test_polars_gets_arrays_of_the_type_of_the_vectors():
    frame = pl.DataFrame({"text": ["a", "b"]})
    for dtype, expected in ((np.float32, pl.Float32), (np.int8, pl.Int8), (np.uint8, pl.UInt8)):
        added = add_columns(frame, {"text": np.ones((2, 3), dtype)}, {})
        assert added.schema == {"text": pl.Array(expected, 3)}
    for rows in (np.empty((0, 3), np.float32), np.empty((0, 0), np.float32)):
        assert add_columns(frame.clear(), {"vector": rows}, {"error": []}).shape == (0, 3)


def test_a_column_embedder_takes_polars_frames(embedder):
    added = ColumnEmbedder(embedder)(pl.DataFrame({"text": ["Cats purr."]}))
    assert added.schema["vector"] == pl.Array(pl.Float32, 4)


def test_errors_name_the_arguments_of_the_caller(embedder):
    frame = pl.DataFrame({"text": ["Cats purr."]})
    with pytest.raises(ConfigurationError, match=r"frame: must be .*LazyFrame\)\. Call its collect\(\) first\."):
        embed_frame(frame.lazy(), "text", embedder)
    with pytest.raises(ConfigurationError, match=r"text_column: there is no column 'texts'"):
        embed_frame(frame, "texts", embedder)
    with pytest.raises(ConfigurationError, match=r"vector_column.*must be different"):
        embed_frame(frame, "text", embedder, vector_column="text")


@pytest.mark.parametrize("kind", COLUMNS)
def test_an_embedder_takes_a_column(embedder, kind):
    texts = ["Cats purr.", "Dogs bark."]
    vectors = embedder.embed(COLUMNS[kind](texts)).vectors
    assert np.array_equal(vectors, embedder.embed(texts).vectors)
    assert np.array_equal(vectors, [*embedder.embed_iter(COLUMNS[kind](texts))])


def test_a_column_may_have_the_name_of_an_argument_of_pandas(embedder):
    frame = pd.DataFrame({"text": ["a", "b"]}, index=[1, 1])
    added = embed_frame(frame, "text", embedder, vector_column="self")
    assert (list(added), list(added.index), list(frame)) == (["text", "self"], [1, 1], ["text"])
