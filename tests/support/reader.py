"""What somebody has who follows the documentation: a key, an address that answers, and a home of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cohere_server import CohereServer
from .openai_server import OpenAIServer
from .voyage_server import VoyageServer


@contextmanager
def at_every_provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have Voyage's and Cohere's own hosts answer on this machine, and set their keys."""
    with VoyageServer() as voyage, CohereServer() as cohere:
        monkeypatch.setattr("embedkit_core.providers.voyage.HOST", voyage.base_url)
        monkeypatch.setenv("CO_API_URL", cohere.base_url)
        for name in ("VOYAGE_API_KEY", "CO_API_KEY"):
            monkeypatch.setenv(name, "test-key")
        yield


@contextmanager
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    """Set the environment of a reader whose home is a folder, and give the server that answers."""
    with OpenAIServer() as server:
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        yield server
