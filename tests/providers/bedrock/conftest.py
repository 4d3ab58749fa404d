"""An AWS configuration of the tests."""

import os

import pytest
from support.bedrock_server import ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, BedrockServer


@pytest.fixture(autouse=True)
def aws(monkeypatch, tmp_path):
    """No AWS configuration but that of a test, and no metadata service."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


@pytest.fixture
def keys(monkeypatch):
    """Access keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION_TOKEN)


@pytest.fixture
def server():
    with BedrockServer() as started:
        yield started
