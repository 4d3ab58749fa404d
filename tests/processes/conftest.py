"""Fixture of the tests with several processes."""

import pytest
from support.processes import Workers


@pytest.fixture
def workers(server, tmp_path):
    """Processes with an embedder each, on one cache folder."""
    started = Workers(server, tmp_path / "cache")
    yield started
    started.close()
