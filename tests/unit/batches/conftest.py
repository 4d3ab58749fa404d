"""Small batches at a local server."""

import pytest
from support.batch_jobs import use_small_batches
from support.openai_batch_server import OpenAIBatchServer


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    use_small_batches(monkeypatch)


@pytest.fixture
def server():
    """A local server with OpenAI's batch endpoint."""
    with OpenAIBatchServer() as running:
        yield running
