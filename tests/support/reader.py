"""Environment for the examples of the documentation: keys, local servers and a home folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cohere_server import CohereServer
from .openai_batch_server import OpenAIBatchServer
from .voyage_server import VoyageServer


@contextmanager
def local_providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Redirect Voyage and Cohere to local servers, and set their keys."""
    with VoyageServer() as voyage, CohereServer() as cohere:
        monkeypatch.setattr("embedkit_core.providers.voyage.HOST", voyage.base_url)
        monkeypatch.setenv("CO_API_URL", cohere.base_url)
        for name in ("VOYAGE_API_KEY", "CO_API_KEY"):
            monkeypatch.setenv(name, "test-key")
        yield


@contextmanager
def reader_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIBatchServer]:
    """Set key, address, cache and home folder for the examples; yield the local server."""
    with OpenAIBatchServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        yield server
