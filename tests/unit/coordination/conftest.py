"""Fixtures of the local coordinator."""

import pytest

from embedkit_core.coordination.local.coordinator import LocalCoordinator


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "embedkit-coordination-v1"


@pytest.fixture
def coordinator(folder):
    coordinator = LocalCoordinator(folder)
    yield coordinator
    coordinator.close()
