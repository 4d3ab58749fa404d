"""Fixtures of the tests of the command line."""

import pytest
from support.openai_server import OpenAIServer

from embedkit_core.cli.run import run


@pytest.fixture
def running():
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    """A server, its key in the environment, and temporary folders."""
    monkeypatch.setenv("OPENAI_API_KEY", running.api_key)
    monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return running


@pytest.fixture
def shell(server, capfd):
    """Run a command line; return the exit code, stdout and stderr."""

    def command(*arguments):
        code = run([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return command
