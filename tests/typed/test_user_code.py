"""What type checkers, and so editors, say about code of users. `make types` checks it, and it runs as a test.

A line that is wrong has an ignore comment. If a checker finds no error in it, it reports the comment as unnecessary.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pytest

from embedkit_core import ConfigurationError, Embedder, EmbeddingResult, Usage
from langchain_embedkit import EmbedKitEmbeddings
from llamaindex_embedkit import EmbedKitEmbedding

SMALL = "openai:text-embedding-3-small"


def test_right_uses_have_types(server: Any) -> None:
    key: str = server.api_key
    url: str = server.base_url
    embedder = Embedder(
        SMALL, api_key=lambda: key, base_url=url, cache=False, dimensions=8, timeout=None, dtype="float32"
    )
    assert_type(embedder.embed(["a"]), EmbeddingResult)
    vectors: npt.NDArray[np.float32] = embedder.embed(["a", "b"]).vectors
    assert vectors.shape == (2, 8)
    query: npt.NDArray[np.float32] = embedder.embed_query("a")
    assert query.dtype == np.float32
    assert_type(embedder.usage, Usage)
    assert_type(embedder.dimensions, int | None)

    chain = EmbedKitEmbeddings(
        model=SMALL, openai_api_key=key, openai_api_base=url, chunk_size=10, request_timeout=3, cache=False
    )
    assert_type(chain.embed_query("a"), list[float])
    assert_type(chain.embed_documents(["a"]), list[list[float]])
    assert_type(chain.embedder, Embedder)
    assert_type(chain.model_copy(update={"dimensions": 8}), EmbedKitEmbeddings)

    index = EmbedKitEmbedding(model_name=SMALL, api_key=key, api_base=url, embed_batch_size=5, cache=False)
    assert_type(index.get_query_embedding("a"), list[float])
    assert_type(index.get_text_embedding_batch(["a"]), list[list[float]])
    assert_type(index.usage, Usage)


def wrong_uses() -> list[Callable[[], object]]:
    return [
        lambda: Embedder(SMALL, dimension=8, cache=False),  # type: ignore[arg-type]
        lambda: Embedder(SMALL, dimensions="8", cache=False),  # type: ignore[arg-type]
        lambda: Embedder(SMALL, dtype="float64", cache=False),  # type: ignore[arg-type]
        lambda: Embedder(SMALL, "key", cache=False),  # type: ignore[arg-type]
        lambda: Embedder(SMALL, cache=True),  # type: ignore[arg-type]
        lambda: Embedder(SMALL, on_long_text="cut", cache=False),  # type: ignore[arg-type]
        lambda: EmbedKitEmbeddings(modle=SMALL, cache=False),  # type: ignore[call-arg]
        lambda: EmbedKitEmbeddings(model=SMALL, dimensions="8", cache=False),  # type: ignore[arg-type]
        lambda: EmbedKitEmbeddings(model=SMALL, chunk_size="8", cache=False),  # type: ignore[arg-type]
        lambda: EmbedKitEmbeddings(model=SMALL, on_error="return", cache=False),  # type: ignore[call-arg]
        lambda: EmbedKitEmbeddings(model=SMALL, embed_batch_size=8, cache=False),  # type: ignore[call-arg]
        lambda: EmbedKitEmbedding(model=SMALL, dimension=8, cache=False),  # type: ignore[call-arg]
        lambda: EmbedKitEmbedding(model=SMALL, embed_batch_size="8", cache=False),  # type: ignore[arg-type]
        lambda: EmbedKitEmbedding(model=SMALL, timeout="1 s", cache=False),  # type: ignore[arg-type]
        lambda: EmbedKitEmbedding(model=SMALL, request_timeout=3, cache=False),  # type: ignore[call-arg]
    ]


def test_wrong_uses_are_errors_at_run_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for use in wrong_uses():
        with pytest.raises(ConfigurationError):
            use()
