"""The warning about truncated texts: once for a whole call or stream, without a local path."""

import logging

import pytest
from support.embedders import fake_embedder

from embedkit_core.common.formatting import without_folders
from embedkit_core.testing import FakeServer

TEXTS = [f"short {i}" if i % 100 else f"a text of many words {i}" for i in range(1_000)]
EXPECTED = (
    "fake:model: 10 of 1,000 texts were truncated to the model's limit (positions 0, 100, 200, 300, 400, 500, 600"
)


@pytest.fixture
def server():
    return FakeServer(max_words=4)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="embedkit_core")
    return caplog


def embedder_at(server):
    return fake_embedder(server, max_batch_texts=16, max_concurrency=2)  # 63 chunks


def test_a_stream_warns_once_and_counts_the_texts_of_all_chunks(server, warnings):
    assert len(list(embedder_at(server).embed_iter(TEXTS))) == 1_000
    [message] = warnings.messages
    assert message.startswith(EXPECTED)


async def test_an_async_stream_warns_once_and_counts_the_texts_of_all_chunks(server, warnings):
    assert len([row async for row in embedder_at(server).aembed_iter(TEXTS)]) == 1_000
    [message] = warnings.messages
    assert message.startswith(EXPECTED)


def test_a_stream_that_is_left_counts_the_texts_that_it_yielded(server, warnings):
    rows = embedder_at(server).embed_iter(TEXTS)
    for _ in range(300):
        next(rows)
    rows.close()
    [message] = warnings.messages
    assert "texts were truncated to the model's limit (positions 0, 100" in message
    assert "of 1,000 texts" not in message


def test_a_stream_without_truncated_texts_does_not_warn(server, warnings):
    list(embedder_at(server).embed_iter(["short"] * 100))
    assert warnings.messages == []


def test_a_call_counts_all_of_its_texts(server, warnings):
    embedder_at(server).embed(TEXTS)
    [message] = warnings.messages
    assert message.startswith(EXPECTED)


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("local:/srv/models/all-MiniLM-L6-v2", "local:all-MiniLM-L6-v2"),
        ("local:sentence-transformers/all-MiniLM-L6-v2", "local:sentence-transformers/all-MiniLM-L6-v2"),
        ("openai:text-embedding-3-small", "openai:text-embedding-3-small"),
    ],
)
def test_a_message_names_a_local_model_without_its_folders(model, shown):
    assert without_folders(model) == shown
