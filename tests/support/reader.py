"""What somebody has who follows the documentation: a key, an address that answers, and a home of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.openai_server import OpenAIServer


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
